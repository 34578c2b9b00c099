"""Controllers that stay stable outside their data: Riccati feedback, margins, attracted regions, and their audit."""

from typing import TYPE_CHECKING

from poise.tools.lazy_front import lazy_front

if TYPE_CHECKING:
    from poise.control.riccati.care import solve_care
    from poise.control.riccati.dare import solve_dare
    from poise.control.riccati.lqr import dlqr, lqr
    from poise.control.riccati.modes import NotStabilizable

__all__ = [
    "NotStabilizable",
    "dlqr",
    "lqr",
    "solve_care",
    "solve_dare",
]

lazy_front(__name__)
