"""Controllers that stay stable outside their data: Riccati feedback, margins, attracted regions, and their audit."""

from typing import TYPE_CHECKING

from poise.tools.lazy_front import lazy_front

if TYPE_CHECKING:
    from poise.control.linear.largest_stable import largest_stable, sampling_margin
    from poise.control.linear.loop import LinearLoop
    from poise.control.linear.margins import Margins, margins
    from poise.control.riccati.care import solve_care
    from poise.control.riccati.dare import solve_dare
    from poise.control.riccati.lqr import dlqr, lqr
    from poise.control.riccati.modes import NotStabilizable

__all__ = [
    "LinearLoop",
    "Margins",
    "NotStabilizable",
    "dlqr",
    "largest_stable",
    "lqr",
    "margins",
    "sampling_margin",
    "solve_care",
    "solve_dare",
]

lazy_front(__name__)
