"""The recommendations of a trained model at every event, to be kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from poise.recsys.event_log import EventLog
from poise.recsys.fit_recommender import checked_scores
from poise.recsys.sequence_windows import SequenceWindows


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceRanks:
    """For each event of a log, the items that a model ranked first after it, and those that followed.

    Attributes:
        kept: the first k items by row of the event; -1 for events that the model did not see as an input.
        competitors: the next k.
    """

    kept: Int[Tensor, "rows k"]
    competitors: Int[Tensor, "rows k"]

    @classmethod
    def from_model(cls, model: nn.Module, log: EventLog, k: int = 100, length: int = 50) -> ReferenceRanks:
        """Record what a trained model recommends after every event of a log, in evaluation mode.

        Args:
            model: maps (batch, time) to (batch, time, items); its mode is as before afterwards.
            log: the interactions that it was trained on.
            k: items to keep in order; 2 k must be at most the number of items.
            length: longest window of a user's sequence.

        Raises:
            ValueError: if ``2 * k`` exceeds the number of items, or the scores have another shape.
        """
        windows, training = SequenceWindows.of(log, length), model.training
        table = torch.full((int(log.row.max()) + 1, 2 * k), -1, dtype=torch.int32)
        model.eval()
        try:
            with torch.no_grad():
                for items, rows in zip(windows.items.split(64), windows.rows.split(64), strict=True):
                    scores = checked_scores(model(items), items)
                    if not 1 <= k <= scores.shape[-1] // 2:
                        raise ValueError(f"k must be in 1 .. half of the {scores.shape[-1]} items, got {k}")
                    there = rows >= 0
                    table[rows[there]] = scores[there].topk(2 * k).indices.int()
        finally:
            model.train(training)
        return cls(table[:, :k], table[:, k:])

    @property
    def coverage(self) -> float:
        """Fraction of rows with a reference; the last event of a user has none."""
        return float((self.kept[:, 0] >= 0).float().mean())

    def at(
        self, rows: Int[Tensor, "batch time"]
    ) -> tuple[Int[Tensor, "batch time k"], Int[Tensor, "batch time k"], Bool[Tensor, "batch time"]]:
        """Return kept items, competitors, and the positions that have them; rows of -1 have none.

        Raises:
            KeyError: if a row has no reference.
        """
        mask = rows >= 0
        safe = rows.clamp(min=0)
        absent = mask & ((rows >= len(self.kept)) | (self.kept[safe.clamp(max=len(self.kept) - 1), 0] < 0))
        if absent.any():
            raise KeyError(f"no reference for the events in rows {rows[absent][:3].tolist()}")
        return self.kept[safe].long(), self.competitors[safe].long(), mask

    def save(self, path: str | Path) -> None:
        """Write the table as a compressed ``.npz`` file."""
        np.savez_compressed(path, kept=self.kept.numpy(), competitors=self.competitors.numpy())

    @classmethod
    def load(cls, path: str | Path) -> ReferenceRanks:
        """Read a table that :meth:`save` wrote."""
        with np.load(path) as file:
            return cls(torch.from_numpy(file["kept"]), torch.from_numpy(file["competitors"]))
