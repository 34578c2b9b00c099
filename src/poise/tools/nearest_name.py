"""The known names that are nearest to a mistyped one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from poise.tools.listing import listing

_SHOWN, _NEAREST, _LEAST = 40, 3, 0.5
_PART = 0.9


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
    alike = {known_name: _alike(name, known_name) for known_name in names}
    near = [n for n in sorted(alike, key=lambda n: -alike[n]) if alike[n] >= _LEAST][:_NEAREST]
    return f"did you mean {', '.join(near)}?" if near else f"there are {listing(names, _SHOWN)}"


def _alike(name: str, known: str) -> float:
    """How alike two names are, from 0 to 1; a part of a long name that is mistyped counts nearly as the whole."""
    parts = [part for part in re.split(r"[_\W]+", known) if part != known]
    part = max((_ratio(name, part) for part in parts), default=0.0)
    return max(_ratio(name, known), _PART * part)


def _ratio(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a.lower(), b.lower()).ratio()
