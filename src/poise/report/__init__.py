"""What every audit, trial and study returns: findings, text, tables, code and figures, as HTML, JSON or terminal."""

from typing import TYPE_CHECKING

from poise.tools.lazy_front import lazy_front

if TYPE_CHECKING:
    from poise.report.charts import bar_chart, line_chart, scatter_chart
    from poise.report.code import Code
    from poise.report.figure import Figure
    from poise.report.finding import SEVERITIES, Evidence, Finding, Severity
    from poise.report.report import Report
    from poise.report.table import Table
    from poise.report.text import Text

__all__ = [
    "SEVERITIES",
    "Code",
    "Evidence",
    "Figure",
    "Finding",
    "Report",
    "Severity",
    "Table",
    "Text",
    "bar_chart",
    "line_chart",
    "scatter_chart",
]

lazy_front(__name__)
