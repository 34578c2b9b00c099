"""One verdict of a claim from runs with disjoint sets of seeds, and one of a study from those of its claims."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from poise.studies.kit.rules import ClaimVerdict

SettledVerdict = ClaimVerdict | Literal["not settled"]
SETTLED_VERDICTS: tuple[SettledVerdict, ...] = (*get_args(ClaimVerdict), "not settled")


def settled_verdict(verdicts: Iterable[ClaimVerdict]) -> SettledVerdict:
    """Return the verdict that runs with different seeds agree on, or *not settled* if they differ."""
    different = set(verdicts)
    return different.pop() if len(different) == 1 else "not settled"


def total_verdict(verdicts: Iterable[SettledVerdict]) -> ClaimVerdict:
    """Return *reproduced* or *refuted* if every tested claim is, *partly* otherwise.

    A claim that is not settled is tested and neither of the two.
    """
    different = set(verdicts) - {"not tested"}
    if not different:
        return "not tested"
    only = different.pop() if len(different) == 1 else "partly"
    return "partly" if only == "not settled" else only


def seeds_in_words(seeds: Sequence[int]) -> str:
    """Return consecutive seeds as ``"seeds 100 to 103"``."""
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
