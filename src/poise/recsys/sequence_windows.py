"""Sequences of items as training examples of fixed length."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from poise.recsys.event_log import EventLog, places_of

PADDING = -1


@dataclass(frozen=True, slots=True, eq=False)
class SequenceWindows:
    """Windows of users' sequences: at each position an item that was seen and the item that came next.

    Attributes:
        items: number of the item seen, :data:`PADDING` at empty positions (at the start of a window).
        targets: number of the item that came next, :data:`PADDING` at empty positions.
        rows: ``EventLog.row`` of the event that was seen; -1 for simulated events and empty positions.
    """

    items: Int[Tensor, "windows time"]
    targets: Int[Tensor, "windows time"]
    rows: Int[Tensor, "windows time"]

    @property
    def mask(self) -> Bool[Tensor, "windows time"]:
        """Positions with a target."""
        return self.targets != PADDING

    @classmethod
    def of(cls, log: EventLog, length: int = 50) -> SequenceWindows:
        """Cut the sequence of each user, from its start, into windows of ``length`` pairs (item, next item).

        Args:
            log: interactions in order.
            length: longest window, at least 1.

        Raises:
            ValueError: if ``length`` is below 1, or no user has two events.
        """
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length!r}")
        order = np.argsort(log.user, kind="stable")
        seen, after = order[:-1], order[1:]
        joined = log.user[seen] == log.user[after]
        seen, after = seen[joined], after[joined]
        if not len(seen):
            raise ValueError("log must hold a user with two events, got none")
        place = places_of(log.user[seen])
        window = (place % length == 0).cumsum() - 1
        position = place % length + length - np.bincount(window)[window]
        filled = np.full((3, window[-1] + 1, length), PADDING)
        filled[:, window, position] = log.item[seen], log.item[after], log.row[seen]
        items, targets, rows = torch.from_numpy(filled)
        return cls(items, targets, rows)


def items_before(log: EventLog, events: Int[np.ndarray, " chosen"], length: int = 50) -> Int[Tensor, "chosen time"]:
    """Return the last ``length`` items that the user of each event had before it, padded at the start.

    Args:
        log: interactions in order.
        events: positions in the log.
        length: number of items.
    """
    order = np.argsort(log.user, kind="stable")
    in_order = np.argsort(order)[events]  # the events of a user stand together
    steps = np.arange(length) - length
    items = log.item[order][in_order[:, None] + steps]
    return torch.from_numpy(np.where(places_of(log.user)[events][:, None] + steps >= 0, items, PADDING))


def last_items(log: EventLog, length: int = 50) -> Int[Tensor, "users time"]:
    """Return the last ``length`` items of each user, padded at the start.

    Args:
        log: interactions in order.
        length: number of items.
    """
    count = np.bincount(log.user, minlength=len(log.users))
    from_end = count[log.user] - 1 - places_of(log.user)
    items = np.full((len(log.users), length), PADDING)
    near = from_end < length
    items[log.user[near], length - 1 - from_end[near]] = log.item[near]
    return torch.from_numpy(items)
