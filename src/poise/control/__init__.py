"""Controllers that stay stable outside their data: Riccati feedback, margins, attracted regions, and their audit."""

from typing import TYPE_CHECKING

from poise.tools.lazy_front import lazy_front

if TYPE_CHECKING:
    from poise.control.closed_loop_audit import audit_closed_loop
    from poise.control.inertia import (
        from_log_cholesky,
        inertial_parameters,
        is_physically_consistent,
        pseudo_inertia,
        to_log_cholesky,
    )
    from poise.control.linear.largest_stable import largest_stable, sampling_margin
    from poise.control.linear.loop import LinearLoop
    from poise.control.linear.margins import Margins, margins
    from poise.control.local_linear.estimate import local_models, markov_operators
    from poise.control.local_linear.ilqr import LocalLinearILQR, QuadraticCost
    from poise.control.local_linear.oracle import FunctionOracle
    from poise.control.region.attracted_region import AttractedRegion, attracted_region
    from poise.control.region.state_difference import state_difference
    from poise.control.riccati.care import solve_care
    from poise.control.riccati.dare import solve_dare
    from poise.control.riccati.lqr import dlqr, lqr
    from poise.control.riccati.modes import NotStabilizable
    from poise.control.sdre.birotor import Birotor
    from poise.control.sdre.sdc_model import SDCModel
    from poise.control.sdre.sdre_controller import SDREController
    from poise.control.sdre.tracking import Tracking, rk4_step, simulate_tracking

__all__ = [
    "AttractedRegion",
    "Birotor",
    "FunctionOracle",
    "LinearLoop",
    "LocalLinearILQR",
    "Margins",
    "NotStabilizable",
    "QuadraticCost",
    "SDCModel",
    "SDREController",
    "Tracking",
    "attracted_region",
    "audit_closed_loop",
    "dlqr",
    "from_log_cholesky",
    "inertial_parameters",
    "is_physically_consistent",
    "largest_stable",
    "local_models",
    "lqr",
    "margins",
    "markov_operators",
    "pseudo_inertia",
    "rk4_step",
    "sampling_margin",
    "simulate_tracking",
    "solve_care",
    "solve_dare",
    "state_difference",
    "to_log_cholesky",
]

lazy_front(__name__)
