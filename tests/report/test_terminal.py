import io

import numpy as np
import pytest
from rich.console import Console

from poise.report import Figure, Report, Table
from poise.report.terminal import sparkline


def printed(report: Report, width: int = 80) -> str:
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(report)
    return out.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_it_stays_within_the_terminal_and_says_everything(width, sample):
    text = printed(sample(), width)
    assert max(map(len, text.splitlines())) <= width
    for word in (
        "ERROR",
        "Attention logit growth",
        "confidence 97 %",
        "began at step 114",
        "lr_scale, weight_decay",
        "138.2",
    ):
        assert word in text
    for block in sample().blocks:
        assert block.title in text


def test_brackets_of_a_name_are_no_markup():
    report = Report("[bold]title[/bold]", "[red]s[/red]", blocks=[Table("[x]", ["[y]"], [["grad_norm[blocks.0]"]])])
    text = printed(report)
    for word in ("[bold]title[/bold]", "[red]s[/red]", "[x]", "[y]", "grad_norm[blocks.0]"):
        assert word in text


def test_columns_of_numbers_end_together():
    rows = printed(Report("t", "s", blocks=[Table("n", ["k", "n"], [["a", 1], ["b", 1000]])])).splitlines()
    one, thousand = (next(line for line in rows if line.strip().startswith(key)) for key in "ab")
    assert len(one.rstrip()) == len(thousand.rstrip())


def test_a_figure_without_curves_shows_its_description():
    import plotly.graph_objects as go

    report = Report("t", "s", blocks=[Figure("f", go.Figure(go.Heatmap(z=[[1]])), "one warm cell")])
    assert "one warm cell" in printed(report)


def test_a_sparkline_follows_its_curve():
    assert sparkline(np.arange(8.0), 8) == "▁▂▃▄▅▆▇█"
    assert sparkline(np.ones(3), 8) == "▁▁▁"
    assert sparkline(np.array([0.0, np.nan, 1.0]), 8) == "▁ █"
    spike = np.zeros(1000)
    spike[500] = 1
    assert sparkline(spike, 32).count("█") == 1
