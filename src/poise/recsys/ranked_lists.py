"""Two ranked lists of items, at which depth each shared item enters their overlap."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

RankedList = Sequence[Hashable] | np.ndarray
"""Items from the first to the last place, each once."""


def entry_depths(a: RankedList, b: RankedList) -> Int[np.ndarray, " shared"]:
    """Return for each item in both lists the depth, from 0, at which both hold it.

    Args:
        a: items of one list, from the first place on.
        b: items of the other.

    Raises:
        ValueError: if a list is empty or holds an item twice.
    """
    if (depths := _integer_depths(a, b)) is not None:
        return depths
    places_a, places_b = _places(a, "a"), _places(b, "b")
    return np.array([max(place, places_b[item]) for item, place in places_a.items() if item in places_b], dtype=np.intp)


def _places(items: RankedList, name: str) -> dict[Any, int]:
    places = {item: place for place, item in enumerate(items)}
    if not places:
        raise ValueError(f"{name} must be a list of at least one item, got an empty one")
    if len(places) < len(items):
        twice = next(item for place, item in enumerate(items) if places[item] != place)
        raise ValueError(f"{name} must hold each item once, got {twice!r} twice")
    return places


def _integer_depths(a: RankedList, b: RankedList) -> Int[np.ndarray, " shared"] | None:
    """The same for permutations of 0 .. n - 1 as integer arrays, without a dictionary; None for any other lists."""
    if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.dtype.kind == b.dtype.kind == "i"):
        return None
    n = len(a)
    if a.ndim != 1 or a.shape != b.shape or not n or a.min() < 0 or b.min() < 0:
        return None
    place = np.arange(n)
    place_a, place_b = np.full(n, -1), np.full(n, -1)
    try:
        place_a[a], place_b[b] = place, place
    except IndexError:  # a number of n or more
        return None
    depths = np.maximum(place_a, place_b)
    # A number that is missing leaves -1 in its place, since another comes twice.
    return None if place_a.min() < 0 or place_b.min() < 0 else depths
