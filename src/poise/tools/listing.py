"""Names as part of a sentence."""

from __future__ import annotations

from collections.abc import Sequence


def listing(names: Sequence[str], shown: int = 3) -> str:
    """Return names as part of a sentence: ``a, b, c and 4 more``.

    Args:
        names: the names.
        shown: how many are written out.
    """
    head = ", ".join(names[:shown])
    return head + (f" and {len(names) - shown} more" if len(names) > shown else "")
