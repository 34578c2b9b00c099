"""The record of a run: its signals, events and meta values."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

import numpy as np

from poise.store.blocks import Block
from poise.store.columns import Columns
from poise.store.event import Event
from poise.store.series import Series, sorted_series

T = TypeVar("T")

_EMPTY = Series(np.empty(0, np.int64), np.empty(0, np.float64))
_TIMELINE = re.compile(r"opt\d+/")


class Source(Protocol):
    """Where a record comes from: a run file, or arrays in memory."""

    meta: dict[str, Any]
    events: list[Event]
    groups: list[Columns]

    def refresh(self) -> None:
        """Read what was written since the last call."""


class Record:
    """What is known about a run: signals by name, events, meta values.

    A record is a view: :meth:`until` and :meth:`timeline` share the numbers with it, which are read on first use. Make
    one with :func:`read_run` or :meth:`from_arrays`.

    Args:
        source: where the numbers come from.
        prefix: show only the timeline with this prefix; ``None`` shows everything under its full name.
        limit: show nothing after this step; ``None`` for no limit.
    """

    def __init__(self, source: Source, prefix: str | None = None, limit: int | None = None) -> None:
        self._source = source
        self._prefix = prefix
        self._limit = limit
        self._later: tuple[tuple[int, int], list[str]] = ((0, 0), [])
        self._derived: dict[Callable[[Record], Any], tuple[tuple[int, int], Any]] = {}

    @classmethod
    def from_arrays(
        cls,
        signals: Mapping[str, tuple[Any, Any]],
        events: Iterable[Event] = (),
        meta: Mapping[str, Any] | None = None,
    ) -> Record:
        """Make a record of arrays in memory.

        Args:
            signals: name -> (steps, values), two sequences of one length; steps in any order.
            events: what happened.
            meta: facts about the run.

        Raises:
            ValueError: if the steps and values of a signal do not fit together; names the signal.
        """
        return cls(_Memory(signals, events, meta or {}))

    @property
    def meta(self) -> dict[str, Any]:
        """Facts about the run, by key."""
        return dict(self._source.meta)

    @property
    def names(self) -> list[str]:
        """Names of the signals that have at least one value here, in the order in which they were declared."""
        shown: dict[str, None] = {}
        for group in self._groups():
            for full in group.names:
                name = self._stripped(full)
                if name is not None:
                    shown[name] = None
        return list(shown)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and bool(self._holding(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __getitem__(self, name: str) -> Series:
        """Return a signal, sorted by step; an empty series if the record has none of that name."""
        parts = [group.series((self._prefix or "") + name) for group in self._holding(name)]
        if not parts:
            return _EMPTY
        whole = parts[0] if len(parts) == 1 else _joined(parts)
        return whole if self._limit is None else whole.until(self._limit)

    def by_layer(self, name: str) -> dict[str, Series]:
        """Return the signals ``name[layer]`` by layer, for example ``by_layer("grad_norm")["blocks.0.weight"]``."""
        start = name + "["
        layers = [full[len(start) : -1] for full in self.names if full.startswith(start) and full.endswith("]")]
        return {layer: self[f"{name}[{layer}]"] for layer in layers}

    def events(self, kind: str | None = None) -> list[Event]:
        """Return the events of one kind, or all, sorted by step."""
        return [event for event in self._source.events if kind in (None, event.kind) and self._shows(event)]

    @property
    def last_step(self) -> int:
        """The last step at which anything is known; -1 if nothing is."""
        steps = [event.step for event in self.events()]
        for group in self._groups():
            name = next((full for full in group.names if self._stripped(full) is not None), None)
            if name is not None:
                steps.append(self._last_of(group, name))
        return max(steps, default=-1)

    @property
    def timelines(self) -> list[str]:
        """Prefixes of the optimizers' timelines: ``""`` for the first, then ``"opt1/"`` and so on."""
        return ["", *self._later_timelines()] if self._prefix is None else [""]

    def timeline(self, prefix: str) -> Record:
        """Return the view of one optimizer: its signals without the prefix, its events and those of no optimizer.

        Raises:
            ValueError: if the record has no such timeline.
        """
        if prefix not in self.timelines:
            raise ValueError(f"prefix must be one of {self.timelines}, got {prefix!r}")
        return self if self._prefix is not None else Record(self._source, prefix, self._limit)

    def until(self, step: int) -> Record:
        """Return the record as it was after ``step``: no later rows, events, or signals that began later.

        Meta values have no step and stay.
        """
        return Record(self._source, self._prefix, step if self._limit is None else min(step, self._limit))

    def derive(self, compute: Callable[[Record], T]) -> T:
        """Return ``compute(self)``, computed once for this view until something new is written.

        Several callers may need the same value of a view. They must not change it.

        Args:
            compute: a function of a record alone, with a name (every evaluation of a lambda makes a new function).
        """
        state = (len(self._source.events), sum(group.rows for group in self._source.groups))
        known = self._derived.get(compute)
        if known is None or known[0] != state:
            known = self._derived[compute] = (state, compute(self))
        return known[1]

    def refresh(self) -> Record:
        """Follow a live run: read what was written since; it is in all views of this record.

        Raises:
            RunFileError: if the file can no longer be read.
        """
        self._source.refresh()
        return self

    def __repr__(self) -> str:
        return f"Record({len(self.names)} signals, {len(self.events())} events, last step {self.last_step})"

    def _groups(self) -> list[Columns]:
        groups = self._source.groups
        return [g for g in groups if g.rows and (self._limit is None or g.first_step <= self._limit)]

    def _holding(self, name: str) -> list[Columns]:
        full = (self._prefix or "") + name
        if self._stripped(full) != name:
            return []
        return [group for group in self._groups() if full in group]

    def _stripped(self, full: str) -> str | None:
        # The name under which this view shows a signal, or None if it does not.
        if self._prefix is None:
            return full
        if self._prefix:
            return full[len(self._prefix) :] if full.startswith(self._prefix) else None
        return None if any(full.startswith(later) for later in self._later_timelines()) else full

    def _later_timelines(self) -> list[str]:
        # Needed with every name, so kept until the source has grown.
        state = (len(self._source.events), len(self._source.groups))
        if self._later[0] != state:
            self._later = (state, self._find_later_timelines())
        return self._later[1]

    def _find_later_timelines(self) -> list[str]:
        found = {str(event.payload["timeline"]) for event in self._source.events if event.payload.get("timeline")}
        for group in self._source.groups:
            found.update(match.group() for match in map(_TIMELINE.match, group.names) if match)
        return sorted(found, key=lambda prefix: (len(prefix), prefix))

    def _shows(self, event: Event) -> bool:
        if self._limit is not None and event.step > self._limit:
            return False
        return self._prefix is None or event.payload.get("timeline", self._prefix) in (self._prefix, None)

    def _last_of(self, group: Columns, name: str) -> int:
        if self._limit is None or group.last_step <= self._limit:
            return group.last_step
        return int(group.series(name).until(self._limit).steps[-1])


class _Memory:
    """Arrays in memory as the source of a record."""

    def __init__(
        self, signals: Mapping[str, tuple[Any, Any]], events: Iterable[Event], meta: Mapping[str, Any]
    ) -> None:
        self.meta = dict(meta)
        self.events = sorted(events, key=lambda event: event.step)
        self.groups = [_columns(name, *arrays) for name, arrays in signals.items()]

    def refresh(self) -> None:
        """Do nothing: the arrays do not change."""


def _columns(name: str, steps: Any, values: Any) -> Columns:
    try:
        series = sorted_series(steps, values)
    except ValueError as error:
        raise ValueError(f"signal {name!r}: {error}") from error
    block = Block(0, series.steps, series.values[None])
    columns = Columns((name,), lambda row: [block])
    if len(series):
        columns.grow(len(series), int(series.steps[0]), int(series.steps[-1]))
    return columns


def _joined(parts: list[Series]) -> Series:
    return sorted_series(np.concatenate([p.steps for p in parts]), np.concatenate([p.values for p in parts]))
