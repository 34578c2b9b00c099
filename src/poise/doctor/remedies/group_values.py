"""A hyperparameter of an optimizer, changed for the length of one step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim import Optimizer


@dataclass(slots=True)
class _Change:
    group: dict[str, Any]
    key: str
    script: Any
    ours: Any

    def undo(self) -> None:
        current = self.group[self.key]
        if isinstance(self.ours, Tensor):
            # A tensor (a capturable or compiled optimizer reads it by address) keeps its identity.
            self.ours.copy_(self.script)
        elif current is self.ours:
            # Otherwise the script itself set a new value during the step, and that one stays.
            self.group[self.key] = self.script


class GroupValues:
    """Changes one entry of every parameter group for one step and puts back exactly what the script had.

    The script, its schedulers and its checkpoints therefore never read the changed value: schedulers may multiply the
    entry or overwrite it as they like.

    Args:
        key: name of the entry, for example ``"lr"``.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self._open: WeakKeyDictionary[Optimizer, list[_Change]] = WeakKeyDictionary()

    @torch.no_grad()
    def apply(self, optimizer: Optimizer, change: Callable[[Any], Any]) -> int:
        """Set the entry to ``change(entry)`` in every group that has it; ``change`` returns ``None`` to leave a group.

        Returns:
            The number of groups that hold the changed entry now.
        """
        self.restore(optimizer)  # a step that raised never reached its post hook
        changes: list[_Change] = []
        self._open[optimizer] = changes
        taken = {_slot(c.group, self.key) for others in self._open.values() for c in others}
        found = 0
        for group in optimizer.param_groups:
            wanted = None if group.get(self.key) is None else change(group[self.key])
            if wanted is None:
                continue
            found += 1
            # Groups can share one tensor, and a wrapping optimizer shares its groups with the one inside it.
            if _slot(group, self.key) not in taken:
                taken.add(_slot(group, self.key))
                changes.append(self._set(group, wanted))
        return found

    def _set(self, group: dict[str, Any], wanted: Any) -> _Change:
        script = group[self.key]
        if isinstance(script, Tensor):
            made = _Change(group, self.key, script.clone(), script)
            script.copy_(torch.as_tensor(wanted))
            return made
        group[self.key] = wanted
        return _Change(group, self.key, script, wanted)

    @torch.no_grad()
    def restore(self, optimizer: Optimizer) -> None:
        """Put the script's own values back."""
        for change in reversed(self._open.pop(optimizer, [])):
            change.undo()


def _slot(group: dict[str, Any], key: str) -> int:
    value = group.get(key)
    return id(value) if isinstance(value, Tensor) else id(group)
