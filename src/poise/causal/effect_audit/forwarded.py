"""What an object's own sensitivity analysis says of unmeasured confounding: handed on, not rewritten."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

from poise.tools.number import number

METHODS = ("robustness_value", "sensitivity_interval", "sensitivity_analysis")
"""Of EconML's estimators, and of DoubleML's."""


def forwarded_sensitivity(fitted: Any, treated: Any) -> tuple[dict[str, str], dict[str, str]]:
    """Return what the sensitivity methods of a fitted object say, and why those that failed did; both by method.

    Args:
        fitted: any object.
        treated: label of the arm, for methods that ask for it as ``T``.
    """
    said: dict[str, str] = {}
    failed: dict[str, str] = {}
    for name in METHODS:
        method = getattr(fitted, name, None)
        if method is None:
            continue
        try:
            asked = inspect.signature(method).parameters
            found = method(T=treated) if "T" in asked else method()
        except Exception as error:  # another package's; its words are what the user needs
            failed[name] = f"{type(error).__name__}: {error}"
            continue
        summary = getattr(fitted, "sensitivity_summary", None)
        said[name] = summary if isinstance(summary, str) and name == "sensitivity_analysis" else _words(found)
    return said, failed


def _words(found: Any) -> str:
    try:
        values = np.ravel(np.asarray(found, dtype=float))
    except (TypeError, ValueError):
        return str(found)
    return " to ".join(number(float(value)) for value in values)
