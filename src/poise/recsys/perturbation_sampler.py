"""Randomly perturbed copies of a log, one for each epoch of fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from poise.recsys.event_log import EventLog
from poise.recsys.perturb import KINDS, Kind, new_items


@dataclass(frozen=True, slots=True)
class PerturbationSampler:
    """Draws a perturbed copy of a log: a fraction of its events deleted, replaced, or preceded by new ones.

    Args:
        rate: fraction of the events, in (0, 0.5]; 1 % by default.
        kinds: of which one is drawn for each copy.
        item: new items: ``"least_popular"`` or ``"random"``.
        seed: of everything drawn.

    Raises:
        ValueError: if ``rate`` is out of range, or a kind is unknown.
    """

    rate: float = 0.01
    kinds: Sequence[Kind] = KINDS
    item: str = "least_popular"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 0.5:
            raise ValueError(f"rate must be in (0, 0.5], got {self.rate!r}")
        if not self.kinds or set(self.kinds) - set(KINDS):
            raise ValueError(f"kinds must be some of {', '.join(KINDS)}, got {list(self.kinds)}")

    def sample(self, log: EventLog, epoch: int) -> EventLog:
        """Return the perturbed copy of an epoch; the simulated events have row -1.

        New events stand directly before the event that they precede, one unit of time earlier.

        Args:
            log: the interactions.
            epoch: number of the epoch; the same one gives the same copy.
        """
        rng = np.random.default_rng([self.seed, epoch])
        rows = np.sort(rng.choice(len(log), max(1, int(self.rate * len(log))), replace=False))
        kind = self.kinds[int(rng.integers(len(self.kinds)))]
        if kind == "delete":
            return log.take(np.setdiff1d(np.arange(len(log)), rows))
        items = new_items(log.item, len(rows), self.item, int(rng.integers(2**31)))
        if kind == "replace":
            return _simulated(log, rows, items)
        order = np.sort(np.concatenate([np.arange(len(log)), rows]))
        added = rows + np.arange(len(rows))
        grown = _simulated(log.take(order), added, items)
        time = grown.time.copy()
        time[added] -= 1
        return replace(grown, time=time)


def _simulated(log: EventLog, rows: np.ndarray, items: np.ndarray) -> EventLog:
    item, row = log.item.copy(), log.row.copy()
    item[rows], row[rows] = items, -1
    return replace(log, item=item, row=row)
