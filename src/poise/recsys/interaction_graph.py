"""The graph through which one interaction reaches the later ones of other users."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int

from poise.recsys.event_log import EventLog, places_of

WindowOn = Literal["both", "user"]


@dataclass(frozen=True, slots=True, eq=False)
class InteractionGraph:
    """Interactions as nodes; an edge leads to the next one of the same user, and to the next one of the same item.

    What a recommender learns from an event can reach all events that follow along these edges: their number is the
    cascade score of the event.

    Attributes:
        log: the events, in the order of time.
        next_of_user: the event to which the user's edge leads, -1 for none.
        next_of_item: the event to which the item's edge leads, -1 for none.

    References:
        Oh, Ustun, McAuley, Kumar, "Rank List Sensitivity of Recommender Systems to Interaction Perturbations", CIKM
        2022, arXiv:2201.12686.

    Example:
        >>> import pandas as pd
        >>> events = pd.DataFrame({"user": [1, 1, 2], "item": ["a", "b", "b"], "time": [0, 1, 2]})
        >>> InteractionGraph.from_frame(events).cascade_scores().tolist()
        [2, 1, 0]
    """

    log: EventLog
    next_of_user: Int[np.ndarray, " events"]
    next_of_item: Int[np.ndarray, " events"]

    @classmethod
    def from_frame(
        cls,
        frame: Any,
        user: str = "user",
        item: str = "item",
        time: str = "time",
        *,
        window: int | None = None,
        window_on: WindowOn = "both",
    ) -> InteractionGraph:
        """Build the graph of a table of interactions.

        Args:
            frame: any table that Narwhals reads, one row for each interaction.
            user: column of the user.
            item: column of the item.
            time: column of the time.
            window: longest sequence that the recommender reads. An edge then joins only two of the last
                ``window - 1`` events of its user, or of its item; ``None`` for no limit.
            window_on: ``"both"``, or ``"user"``: both ends among the last ``window`` events of their users, items
                without a limit, as for recommenders that cut sequences of users only.

        Raises:
            ValueError: if the table is not a log of interactions, ``window`` is below 2, or ``window_on`` is unknown.
        """
        return cls.from_log(EventLog.from_frame(frame, user, item, time), window=window, window_on=window_on)

    @classmethod
    def from_log(cls, log: EventLog, *, window: int | None = None, window_on: WindowOn = "both") -> InteractionGraph:
        """Build the graph of a log; arguments and errors as :meth:`from_frame`."""
        if window is not None and window < 2:
            raise ValueError(f"window must be at least 2, or None, got {window!r}")
        if window_on not in ("both", "user"):
            raise ValueError(f"window_on must be 'both' or 'user', got {window_on!r}")
        every = np.ones(len(log), bool)
        if window is None:
            near_user = near_item = every
        elif window_on == "both":
            near_user, near_item = _last(log.user, window - 1), _last(log.item, window - 1)
        else:
            near_user = near_item = _last(log.user, window)
        return cls(log, _successors(log.user, near_user), _successors(log.item, near_item))

    def cascade_scores(self) -> Int[np.ndarray, " events"]:
        """Return the number of descendants of every event, exactly, in the order of ``log``.

        Events are visited from the last to the first. A set of descendants is one integer with a bit per event; only
        those of the next event of each user and item are kept, so memory is (users + items) x events bits.
        """
        last, scores = len(self.log) - 1, np.zeros(len(self.log), np.int64)
        reached: dict[int, int] = {}  # event -> the event and its descendants, bit `last - event` for each
        waiting = np.bincount(np.concatenate([self.next_of_user, self.next_of_item]) + 1, minlength=last + 2)[1:]
        left = waiting.tolist()  # edges into an event along which its set is still to be handed on
        after_user, after_item = self.next_of_user.tolist(), self.next_of_item.tolist()
        for event in range(last, -1, -1):
            below = 0
            for after in (after_user[event], after_item[event]):
                if after >= 0:
                    below |= reached[after]
                    left[after] -= 1
                    if not left[after]:
                        del reached[after]
            scores[event] = below.bit_count()
            if left[event]:
                reached[event] = below | 1 << (last - event)
        return scores

    def roots(self) -> Bool[np.ndarray, " events"]:
        """Return which events no edge leads to: only they can have the largest cascade score."""
        found = np.ones(len(self.log), bool)
        for after in (self.next_of_user, self.next_of_item):
            found[after[after >= 0]] = False
        return found


def _last(group: Int[np.ndarray, " events"], count: int) -> Bool[np.ndarray, " events"]:
    """Which events are among the last ``count`` of their group."""
    return places_of(group) >= np.bincount(group)[group] - count


def _successors(group: Int[np.ndarray, " events"], near: Bool[np.ndarray, " events"]) -> Int[np.ndarray, " events"]:
    """The next event of the same group, -1 where there is none or either end is outside the window."""
    order = np.argsort(group, kind="stable")
    before, after = order[:-1], order[1:]
    joined = (group[before] == group[after]) & near[before] & near[after]
    successors = np.full(len(group), -1)
    successors[before[joined]] = after[joined]
    return successors
