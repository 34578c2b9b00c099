"""From scores of runs to counts of wins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from poise.evidence import _checks
from poise.report import Report, Table


@dataclass(frozen=True, slots=True)
class Wins:
    """Counts of pairs that B won, one entry per group, as :meth:`BinomialEvidence.fit` takes them.

    Args:
        groups: group labels, in order of first appearance.
        successes: pairs that B won.
        trials: pairs that either won.
        ties: pairs with equal scores; they are in neither count.
    """

    groups: tuple[Any, ...]
    successes: tuple[int, ...]
    trials: tuple[int, ...]
    ties: tuple[int, ...]

    def report(self) -> Report:
        """Return the counts as a report."""
        rows = [list(row) for row in zip(map(str, self.groups), self.successes, self.trials, self.ties, strict=True)]
        summary = f"B wins {sum(self.successes)} of {sum(self.trials)} pairs; {sum(self.ties)} pairs are ties."
        return Report("Wins", summary, blocks=[Table("Wins", ["group", "B wins", "decided", "ties"], rows)])


def paired_wins(
    a: Any,
    b: Any,
    seeds: Sequence[Any] | None = None,
    groups: Sequence[Any] | None = None,
    lower_is_better: bool = True,
    diverged_as: float | None = None,
) -> Wins:
    """Count in how many pairs B beats A, per group (data set, task, user).

    Args:
        a: scores of A.
        b: scores of B, paired with ``a``: the same seed and group at the same position.
        seeds: seed of each pair; a seed may appear once per group, since the same run counted twice is no evidence.
        groups: group of each pair; one group by default.
        lower_is_better: whether a lower score wins, as for a loss.
        diverged_as: score that a diverged run (NaN, infinite or beyond 1e100) counts as; by default such a score is an
            error.

    Raises:
        ValueError: if lengths differ, a score diverged and ``diverged_as`` is not given, or a seed repeats in a
            group.
    """
    x, _ = _checks.scores("a", a, diverged_as)
    y, _ = _checks.scores("b", b, diverged_as)
    if len(x) != len(y):
        raise ValueError(f"a and b must hold one score per pair each, got {len(x)} and {len(y)}")
    labels = [0] * len(x) if groups is None else list(groups)
    if len(labels) != len(x):
        raise ValueError(f"groups must have one label per pair ({len(x)}), got {len(labels)}")
    if seeds is not None:
        _check_seeds(list(seeds), labels)
    names = tuple(dict.fromkeys(labels))
    member = np.array([names.index(label) for label in labels])
    win, tie = (y < x) if lower_is_better else (y > x), x == y
    successes, ties, total = (
        np.bincount(member, weights, len(names)).astype(int) for weights in (win, tie, np.ones(len(x)))
    )
    return Wins(names, tuple(successes.tolist()), tuple((total - ties).tolist()), tuple(ties.tolist()))


def _check_seeds(seeds: list[Any], labels: list[Any]) -> None:
    if len(seeds) != len(labels):
        raise ValueError(f"seeds must have one entry per pair ({len(labels)}), got {len(seeds)}")
    seen = set()
    for pair in zip(labels, seeds, strict=True):
        if pair in seen:
            raise ValueError(f"seeds must not repeat within a group, got seed {pair[1]!r} twice in group {pair[0]!r}")
        seen.add(pair)
