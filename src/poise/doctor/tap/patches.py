"""Replace attributes of torch for a time, and put every one back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_MISSING = object()


class Patches:
    """A list of attributes that can be replaced and put back, as often as needed.

    Compiled functions of torch cannot be hooked from within (see :mod:`poise.doctor.tap.function_hook`): the attribute
    that holds them is replaced, for as short a time as possible.
    """

    def __init__(self) -> None:
        self._prepared: list[tuple[Any, str, Any, Any]] = []  # owner, name, original, replacement
        self._replaced: list[tuple[Any, str, Any, Any]] = []  # owner, name, what the owner itself held, replacement

    @property
    def active(self) -> bool:
        """Whether anything is replaced now."""
        return bool(self._replaced)

    def prepare(self, owner: Any, name: str, make: Callable[[Any], Any]) -> Any:
        """Keep ``make(original)`` for ``owner.name`` until :meth:`apply`, and return it."""
        original = getattr(owner, name)
        replacement = make(original)
        self._prepared.append((owner, name, original, replacement))
        if self.active:
            self._set(owner, name, original, replacement)
        return replacement

    def replace(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        """Set ``owner.name`` to ``make(original)`` now; an attribute that this torch lacks is left alone."""
        original = getattr(owner, name, None)
        if original is not None:
            self._set(owner, name, original, make(original))

    def apply(self) -> None:
        """Set what was prepared, except where other code has replaced the original since."""
        for entry in self._prepared:
            self._set(*entry)

    def undo(self) -> None:
        """Put everything back, last first, except where other code has replaced the replacement since."""
        while self._replaced:
            owner, name, own, replacement = self._replaced.pop()
            if vars(owner).get(name) is not replacement:
                continue
            if own is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, own)

    def _set(self, owner: Any, name: str, original: Any, replacement: Any) -> None:
        if getattr(owner, name, None) is original:
            # A class may inherit the attribute: then undoing means deleting the replacement, not copying the attribute
            # of the parent.
            self._replaced.append((owner, name, vars(owner).get(name, _MISSING), replacement))
            setattr(owner, name, replacement)
