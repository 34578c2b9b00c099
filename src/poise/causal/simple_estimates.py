"""Least squares and two-stage least squares, with robust standard errors: what an estimate is shown beside."""

from __future__ import annotations

import numpy as np

from poise.causal.average_effect import AverageEffect, ratio_average
from poise.causal.inputs import CausalData


def least_squares(data: CausalData) -> AverageEffect:
    """Return the coefficient of the treatment in a linear regression on treatment and covariates."""
    return _ratio(data, data.arm.astype(float))


def two_stage_least_squares(data: CausalData, instrument: np.ndarray) -> AverageEffect:
    """Return the coefficient of the treatment where an instrument, and the covariates, predict it.

    Args:
        data: two arms.
        instrument: of shape (rows,).
    """
    return _ratio(data, instrument)


def _ratio(data: CausalData, instrument: np.ndarray) -> AverageEffect:
    weight = np.ones(len(data)) if data.weight is None else data.weight
    root = np.sqrt(weight)[:, None]
    others = np.column_stack([np.ones(len(data)), data.x]) * root
    # What the covariates do not predict linearly (Frisch, Waugh, Lovell).
    columns = np.column_stack([instrument, data.arm, data.y]) * root
    z, a, y = (columns - others @ np.linalg.lstsq(others, columns, rcond=None)[0]).T
    return ratio_average(z * y, z * a, None, data.groups)
