"""A log of interactions between users and items, in the order of time."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import narwhals as nw
import numpy as np
from jaxtyping import Float, Int, Shaped

_MANY_TIES = 0.01


@dataclass(frozen=True, slots=True, eq=False)
class EventLog:
    """Interactions in the order of time, users and items numbered by their sorted labels.

    Attributes:
        user: number of the user of each event.
        item: number of the item of each event.
        time: time of each event, ascending.
        row: position of each event in the table that it came from.
        users: label of each user, ascending.
        items: label of each item, ascending.
    """

    user: Int[np.ndarray, " events"]
    item: Int[np.ndarray, " events"]
    time: Float[np.ndarray, " events"]
    row: Int[np.ndarray, " events"]
    users: Shaped[np.ndarray, " users"]
    items: Shaped[np.ndarray, " items"]

    def __len__(self) -> int:
        return len(self.user)

    @classmethod
    def from_frame(cls, frame: Any, user: str = "user", item: str = "item", time: str = "time") -> EventLog:
        """Read a table with one row for each interaction; equal times are ordered by user, then by item.

        Args:
            frame: pandas, Polars, Arrow or any other table that Narwhals reads.
            user: column of the user.
            item: column of the item.
            time: column of the time: numbers or dates.

        Raises:
            ValueError: if a column is missing, the table is empty, or a value is missing.

        Warns:
            UserWarning: if more than 1 % of the events share their time with another event of their user, since their
                order is then not known.
        """
        table = nw.from_native(frame, eager_only=True)
        if missing := [name for name in (user, item, time) if name not in table.columns]:
            raise ValueError(
                f"events must have the columns {user!r}, {item!r} and {time!r}, got none named {missing[0]!r}"
            )
        if not len(table):
            raise ValueError("events must have at least one row, got an empty table")
        for name in (user, item, time):
            if count := int(table[name].is_null().sum()):
                raise ValueError(f"events must have no missing values, got {count} in column {name!r}")
        users, user_number = np.unique(table[user].to_numpy(), return_inverse=True)
        items, item_number = np.unique(table[item].to_numpy(), return_inverse=True)
        when = table[time].to_numpy()
        seconds = when.astype("datetime64[ns]").astype(np.int64) / 1e9 if when.dtype.kind == "M" else when.astype(float)
        if np.isnan(seconds).any():
            raise ValueError(f"events must have no missing values, got NaN in column {time!r}")
        order = np.lexsort((item_number, user_number, seconds))
        log = cls(user_number[order], item_number[order], seconds[order], order, users, items)
        log._warn_of_ties(time)
        return log

    def _warn_of_ties(self, time: str) -> None:
        tied = (self.user[1:] == self.user[:-1]) & (self.time[1:] == self.time[:-1])
        if (fraction := tied.mean() if len(tied) else 0.0) > _MANY_TIES:
            warnings.warn(
                f"{fraction:.0%} of the events have the same {time} as another event of their user; they are ordered "
                "by item",
                stacklevel=3,
            )

    def take(self, order: Shaped[np.ndarray, " kept"]) -> EventLog:
        """Return the events at the given positions, or those that a mask selects; numbering and rows stay.

        Args:
            order: positions in the order wanted, or one boolean for each event.
        """
        return replace(self, user=self.user[order], item=self.item[order], time=self.time[order], row=self.row[order])

    def held_out(self, fraction: float = 0.1) -> Shaped[np.ndarray, " events"]:
        """Return which events are the last ``int(fraction * n)`` of the n events of their user.

        Args:
            fraction: of each user's events, in (0, 1).

        Raises:
            ValueError: if ``fraction`` is out of range.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"fraction must be in (0, 1), got {fraction!r}")
        count = np.bincount(self.user, minlength=len(self.users))
        place = places_of(self.user)
        return place >= count[self.user] - (fraction * count[self.user]).astype(int)


def places_of(group: Int[np.ndarray, " events"]) -> Int[np.ndarray, " events"]:
    """Return the place, from 0, of each event among the events of its group, in order.

    Args:
        group: number of the group of each event.
    """
    order = np.argsort(group, kind="stable")
    begins = np.searchsorted(group[order], np.arange(group.max() + 1 if len(group) else 0))
    places = np.empty(len(group), np.int64)
    places[order] = np.arange(len(group)) - begins[group[order]]
    return places
