"""The learners that stand where the user names none: small boosted trees that handle curved functions of tables."""

from __future__ import annotations

from typing import Any

from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

_SMALL = {"max_iter": 80, "max_leaf_nodes": 6, "learning_rate": 0.1, "early_stopping": False}


def default_regressor() -> Any:
    """Return 80 boosted trees of 6 leaves at a learning rate of 0.1, for means of an outcome and for effects."""
    return HistGradientBoostingRegressor(**_SMALL)


def default_classifier() -> Any:
    """Return the same for probabilities of arms."""
    return HistGradientBoostingClassifier(**_SMALL)
