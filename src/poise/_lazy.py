"""Lazy room fronts: a public name is imported when it is first used."""

from __future__ import annotations

import ast
import difflib
import inspect
import sys
from importlib import import_module
from types import ModuleType
from typing import Any


def attach(room: str) -> None:
    """Make a room import each of its public names when the name is first used.

    Which names are public, the room's ``__init__.py`` says in ``__all__``; where they come from, by imports under
    ``if TYPE_CHECKING:``, which type checkers and editors read as imports like any other.

    Args:
        room: ``__name__`` of the room, whose ``__init__.py`` calls this as its last line.

    Raises:
        ImportError: if a public name is not imported there, or one that is imported is not public.
    """
    module = sys.modules[room]
    sources = _sources(ast.parse(inspect.getsource(module)))
    if odd := sources.keys() ^ set(module.__all__):
        raise ImportError(f"{room}: __all__ and the imports under TYPE_CHECKING differ by {', '.join(sorted(odd))}")
    module.__dict__["_sources"] = sources
    module.__class__ = _LazyRoom


def _sources(tree: ast.Module) -> dict[str, str]:
    blocks = [node.body for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [node for body in blocks for node in body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


class _LazyRoom(ModuleType):
    __all__: list[str]
    _sources: dict[str, str]

    def __getattr__(self, name: str) -> Any:
        if name in self._sources:
            value = getattr(import_module(self._sources[name]), name)
            setattr(self, name, value)
            return value
        near = difflib.get_close_matches(name, self.__all__, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        # With the module beside the name, Python would print the nearest name a second time.
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}{hint}", name=name)

    def __setattr__(self, name: str, value: object) -> None:
        # Python sets `poise.optim.fuse` to the module once `poise/optim/fuse.py` is imported; the function is meant.
        if not (name in self._sources and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted(self.__all__)
