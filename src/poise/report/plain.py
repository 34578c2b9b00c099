"""Values as plain JSON types, and back, without losing NaN or infinity."""

from __future__ import annotations

import math
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import PurePath
from typing import Any

import numpy as np


def plain_cell(value: Any, argument: str) -> str | int | float | bool | None:
    """Return ``value`` as a Python scalar.

    Args:
        value: a scalar of Python, NumPy, torch (zero dimensions) or of a date type; dates become ISO text.
        argument: name of the value in an error message.

    Raises:
        TypeError: if ``value`` is not a scalar.
    """
    if not isinstance(value, (str, bool, int, float, type(None))) and callable(getattr(value, "item", None)):
        value = _item(value, argument)
    # Subclasses (numpy.float64, numpy.str_, enums) become the plain type.
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if value is None or type(value).__name__ in ("NAType", "NaTType"):  # pandas' types of a missing value
        return None
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, (timedelta, PurePath)):
        return str(value)
    raise TypeError(f"{argument} must be a number, text, bool, date or None, got {type(value).__name__}")


def to_plain(value: Any, argument: str) -> Any:
    """Return nested dicts, lists and scalars as JSON types; NaN and infinities become ``{"float": "nan"}``.

    Args:
        value: what is to be written.
        argument: name of the value in an error message.

    Raises:
        TypeError: if something in it has no counterpart in JSON.
    """
    if isinstance(value, dict):
        return {str(k): to_plain(v, f"{argument}[{k!r}]") for k, v in value.items()}
    if isinstance(value, np.ndarray) and value.ndim:
        value = value.tolist()
    if isinstance(value, (list, tuple, set, frozenset)):
        items = sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value
        return [to_plain(v, f"{argument}[{i}]") for i, v in enumerate(items)]
    cell = plain_cell(value, argument)
    if isinstance(cell, float) and not math.isfinite(cell):
        return {"float": str(cell)}  # JSON cannot hold it
    return cell


def from_plain(value: Any) -> Any:
    """Undo :func:`to_plain` (tuples and sets stay lists)."""
    if isinstance(value, list):
        return [from_plain(v) for v in value]
    if isinstance(value, dict):
        if value.keys() == {"float"}:
            return float(value["float"])
        return {k: from_plain(v) for k, v in value.items()}
    return value


def require_text(value: Any, argument: str) -> None:
    """Raise unless ``value`` is text and not empty."""
    if not isinstance(value, str):
        raise TypeError(f"{argument} must be text, got {type(value).__name__}")
    if not value.strip():
        raise ValueError(f"{argument} must not be empty")


def _item(value: Any, argument: str) -> Any:
    try:
        return value.item()
    except (ValueError, RuntimeError) as error:
        shape = tuple(getattr(value, "shape", ()))
        raise TypeError(f"{argument} must be one value, got {type(value).__name__} of shape {shape}") from error
