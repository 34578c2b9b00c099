"""The known names that are nearest to a mistyped one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from poise.tools.listing import listing

_SHOWN = 40


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message about an unknown name: the nearest known names, or else all of them.

    Args:
        name: what was given.
        known: the names that exist.

    Example:
        >>> did_you_mean("warmp", ["warmup", "beta2"])
        'did you mean warmup?'
        >>> did_you_mean("x", ["warmup", "beta2"])
        'there are warmup, beta2'
    """
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"did you mean {', '.join(near)}?" if near else f"there are {listing(names, _SHOWN)}"
