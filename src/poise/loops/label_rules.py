"""How a classifier labels new rows: the likeliest class, or a draw from its probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Shaped

LabelRule = Callable[[Any, Any, np.random.Generator], Shaped[np.ndarray, " rows"]]
"""``rule(fitted classifier, X, generator)`` returns a label for each row."""


def argmax(model: Any, X: Any, rng: np.random.Generator) -> Shaped[np.ndarray, " rows"]:
    """Label each row by what the model predicts.

    Args:
        model: fitted classifier.
        X: rows.
        rng: not used.
    """
    return np.asarray(model.predict(X))


def sample(model: Any, X: Any, rng: np.random.Generator) -> Shaped[np.ndarray, " rows"]:
    """Label each row by a draw from the model's probabilities.

    Args:
        model: fitted classifier with ``predict_proba``.
        X: rows.
        rng: of the draws.

    Raises:
        TypeError: if the model has no ``predict_proba``.
    """
    return temperature(1.0)(model, X, rng)


def temperature(value: float) -> LabelRule:
    """Return the rule that draws from probabilities raised to 1 / ``value``: 1 is :func:`sample`, near 0 the argmax.

    Args:
        value: the temperature, above 0.

    Raises:
        ValueError: if it is not above 0.
    """
    if not value > 0:
        raise ValueError(f"temperature must be above 0, got {value!r}")

    def rule(model: Any, X: Any, rng: np.random.Generator) -> Shaped[np.ndarray, " rows"]:
        if not hasattr(model, "predict_proba"):
            raise TypeError(f"drawing labels needs a model with predict_proba, got {type(model).__name__}")
        with np.errstate(divide="ignore"):
            logits = np.log(model.predict_proba(X)) / value
        # Gumbel's trick: the largest of logits plus noise is a draw.
        return np.asarray(model.classes_)[(logits + rng.gumbel(size=logits.shape)).argmax(1)]

    return rule


RULES: dict[str, LabelRule] = {"argmax": argmax, "sample": sample}


def label_rule(rule: str | LabelRule) -> LabelRule:
    """Return a rule by name, or the rule itself.

    Raises:
        ValueError: if there is no rule of that name.
    """
    if callable(rule):
        return rule
    if rule not in RULES:
        raise ValueError(f"label_rule must be one of {', '.join(RULES)} or a function, got {rule!r}")
    return RULES[rule]
