"""Fine-tuning that keeps the order of recommendations under changes of the data."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from poise.recsys.event_log import EventLog
from poise.recsys.fit_recommender import train_epoch
from poise.recsys.perturbation_sampler import PerturbationSampler
from poise.recsys.rank_preserving_loss import RankPreservingLoss
from poise.recsys.reference_ranks import ReferenceRanks
from poise.recsys.sequence_windows import SequenceWindows


@dataclass(frozen=True, slots=True)
class Finest:
    """Rank-preserving fine-tuning: each epoch sees a perturbed copy of the log, and the old order is part of the loss.

    Args:
        references: what the trained model recommended; ``ReferenceRanks.from_model(model, log)``.
        loss: keeps their order.
        sampler: draws the perturbed copy of each epoch.
        weight: factor on the rank loss; 1 by default, with the mean reduction.
        epochs: passes over the log; 10 by default.
        lr: learning rate of a new Adam; 1e-3 by default.
        batch_size: windows of a batch.
        length: longest window of a user's sequence.
        clip: largest norm of the gradient.

    References:
        Oh, Ustun, McAuley, Kumar, "FINEST: Stabilizing Recommendations by Rank-Preserving Fine-Tuning", TKDD 2024,
        arXiv:2402.03481.
    """

    references: ReferenceRanks
    loss: RankPreservingLoss = field(default_factory=RankPreservingLoss)
    sampler: PerturbationSampler = field(default_factory=PerturbationSampler)
    weight: float = 1.0
    epochs: int = 10
    lr: float = 1e-3
    batch_size: int = 32
    length: int = 50
    clip: float = 5.0

    def fit(self, model: nn.Module, log: EventLog, seed: int = 0) -> list[float]:
        """Fine-tune a trained model in place and return the loss of next items of each epoch.

        Args:
            model: maps (batch, time) to (batch, time, items).
            log: the interactions; their ``row`` is what the references are looked up by.
            seed: of the order of the batches and of dropout.

        Raises:
            KeyError: if an event has no reference.
            ValueError: if the scores have another shape.
        """
        optimizer = torch.optim.Adam(model.parameters(), lr=self.lr)
        history = []
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for epoch in range(self.epochs):
                windows = SequenceWindows.of(self.sampler.sample(log, epoch), self.length)
                history.append(train_epoch(model, optimizer, windows, self.batch_size, self.clip, self.rank_loss))
        return history

    def rank_loss(self, scores: Float[Tensor, "batch time items"], rows: Int[Tensor, "batch time"]) -> Tensor:
        """Return the weighted rank loss of a batch, for a training loop of your own.

        Args:
            scores: of every item at every position.
            rows: row of the event at each position; -1 where there is none or it is simulated.

        Raises:
            KeyError: if a row has no reference.
        """
        return self.weight * self.loss(scores, *self.references.at(rows))
