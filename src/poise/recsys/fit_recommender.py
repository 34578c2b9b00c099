"""Training of a recommender of the next item."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from poise.recsys.event_log import EventLog
from poise.recsys.sequence_windows import PADDING, SequenceWindows, last_items

ExtraLoss = Callable[[Float[Tensor, "batch time items"], Int[Tensor, "batch time"]], Tensor]
"""A further loss of the scores and of the rows of the events at their positions."""


def fit_recommender(
    model: nn.Module,
    log: EventLog,
    *,
    epochs: int = 20,
    lr: float = 5e-3,
    batch_size: int = 32,
    length: int = 50,
    clip: float = 5.0,
    seed: int = 0,
) -> list[float]:
    """Train a model to predict the next item of every event, by Adam on the cross-entropy over all items.

    Args:
        model: maps item numbers of shape (batch, time), -1 for padding, to scores of shape (batch, time, items); a
            :class:`GRURecommender`, a :class:`SASRec` or your own. It is trained in place.
        log: the interactions.
        epochs: passes over the log.
        lr: learning rate.
        batch_size: windows of a batch.
        length: longest window of a user's sequence.
        clip: largest norm of the gradient.
        seed: of the order of the batches and of dropout.

    Returns:
        The mean loss of each epoch.

    Raises:
        ValueError: if a number is out of range, no user has two events, or the scores have another shape.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    windows = SequenceWindows.of(log, length)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return [train_epoch(model, optimizer, windows, batch_size, clip) for _ in range(epochs)]


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    windows: SequenceWindows,
    batch_size: int = 32,
    clip: float = 5.0,
    extra_loss: ExtraLoss | None = None,
) -> float:
    """Train over all windows once, in a random order, and return the mean loss of next items.

    Args:
        model: maps (batch, time) to (batch, time, items).
        optimizer: of its parameters.
        windows: the examples.
        batch_size: windows of a batch.
        clip: largest norm of the gradient.
        extra_loss: added to the cross-entropy, if given.

    Raises:
        ValueError: if the scores have another shape than (batch, time, items).
    """
    model.train()
    total = torch.zeros(())
    for index in batches(len(windows.items), batch_size):
        items, targets = windows.items[index], windows.targets[index]
        scores = checked_scores(model(items), items)
        loss = F.cross_entropy(scores.flatten(0, 1), targets.flatten(), ignore_index=PADDING)
        total += loss.detach() * len(index)
        if extra_loss is not None:
            loss = loss + extra_loss(scores, windows.rows[index])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return float(total) / len(windows.items)


def batches(count: int, size: int) -> Iterator[Int[Tensor, " size"]]:
    """Yield the numbers 0 .. count - 1 in random order, ``size`` at a time."""
    yield from torch.randperm(count).split(size)


def checked_scores(
    scores: Float[Tensor, "batch time items"], items: Int[Tensor, "batch time"]
) -> Float[Tensor, "batch time items"]:
    """Return scores if they are there for every position.

    Raises:
        ValueError: if they are not.
    """
    if scores.ndim != 3 or scores.shape[:2] != items.shape:
        raise ValueError(
            f"model must map items of shape (batch, time) = {tuple(items.shape)} to scores of every item at every "
            f"position, shape (batch, time, items), got {tuple(scores.shape)}"
        )
    return scores


@torch.no_grad()
def score_users(
    model: nn.Module, log: EventLog, length: int = 50, batch_size: int = 256
) -> Float[Tensor, "users items"]:
    """Return the scores of every item as the next one of every user of a log.

    Args:
        model: maps (batch, time) to (batch, time, items); its mode is as before afterwards.
        log: the interactions.
        length: number of last items that the model sees.
        batch_size: users of a batch.
    """
    training = model.training
    model.eval()
    try:
        return torch.cat([model(items)[:, -1] for items in last_items(log, length).split(batch_size)])
    finally:
        model.train(training)
