"""Event payloads and meta values as JSON text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def encode(value: Any) -> str:
    """Write a value as JSON text.

    Numpy scalars, arrays and tensors become numbers and lists; tuples and sets become lists; NaN and infinities are
    written as ``NaN``, ``Infinity`` and ``-Infinity``, which :func:`decode` reads back; keys and anything that JSON
    cannot hold become strings.
    """
    return json.dumps(_plain(value))


def decode(text: str) -> Any:
    """Read back what :func:`encode` wrote."""
    return json.loads(text)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        # ``tolist`` of a numpy value that has no Python type returns the value itself or an object.
        return _plain_or_text(value.tolist())
    return str(value)


def _plain_or_text(value: Any) -> Any:
    return str(value) if hasattr(value, "tolist") else _plain(value)
