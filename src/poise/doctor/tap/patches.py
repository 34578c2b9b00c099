"""Replace functions of torch for as long as a run is watched, and put every one back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

_MISSING = object()


class Patches:
    """A list of replaced attributes that can be undone, last first."""

    def __init__(self) -> None:
        self._replaced: list[tuple[Any, str, Any, Any]] = []

    def replace(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        """Set ``owner.name`` to ``make(original)``; an attribute that this torch lacks is left alone."""
        original = getattr(owner, name, None)
        if original is None:
            return
        # A class may inherit the attribute: then undoing means deleting ours, not copying the parent's down.
        own = vars(owner).get(name, _MISSING)
        replacement = make(original)
        setattr(owner, name, replacement)
        self._replaced.append((owner, name, own, replacement))

    def undo(self) -> None:
        """Put everything back, save where somebody else has replaced our replacement since."""
        while self._replaced:
            owner, name, own, replacement = self._replaced.pop()
            if vars(owner).get(name) is not replacement:
                continue
            if own is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, own)

    @contextlib.contextmanager
    def lifted(self) -> Iterator[None]:
        """Take all replacements away for a moment."""
        replaced = list(self._replaced)
        self.undo()
        try:
            yield
        finally:
            for owner, name, _, replacement in replaced:
                setattr(owner, name, replacement)
            self._replaced = replaced
