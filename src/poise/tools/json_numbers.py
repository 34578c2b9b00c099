"""Numbers that JSON cannot hold: NaN and the infinities, as strings that ``float`` reads back."""

from __future__ import annotations

import math
from typing import Any


def json_number(value: float) -> float | str:
    """Return a number as JSON can hold it: itself if it is finite, else ``"nan"``, ``"inf"`` or ``"-inf"``.

    ``float(...)`` of the result is the number again.

    Args:
        value: any number.
    """
    return value if math.isfinite(value) else str(float(value))


def json_plain(value: Any) -> Any:
    """Return dicts, lists and tuples with every float in them as :func:`json_number` writes it.

    Args:
        value: of JSON types, tuples allowed; other objects are returned as they are.
    """
    if isinstance(value, dict):
        return {key: json_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_plain(item) for item in value]
    return json_number(value) if isinstance(value, float) else value
