"""Packages whose public names are imported when they are first used."""

from __future__ import annotations

import ast
import difflib
import inspect
import sys
from importlib import import_module
from types import ModuleType
from typing import Any


def lazy_front(package: str) -> None:
    """Make a package import each of its public names when the name is first used.

    The package's ``__init__.py`` lists its public names in ``__all__`` and imports them under ``if TYPE_CHECKING:``,
    which type checkers, editors and documentation tools read as ordinary imports.

    Args:
        package: ``__name__`` of the package, whose ``__init__.py`` calls this as its last line.

    Raises:
        ImportError: if a public name is not imported there, or one that is imported is not public.
        OSError: if the source of the package is not there.
    """
    module = sys.modules[package]
    sources = _sources(ast.parse(inspect.getsource(module)))
    if odd := sources.keys() ^ set(module.__all__):
        raise ImportError(f"{package}: __all__ and imports under TYPE_CHECKING differ by {', '.join(sorted(odd))}")
    module.__dict__["_sources"] = sources
    module.__class__ = _LazyFront


def _sources(tree: ast.Module) -> dict[str, str]:
    blocks = [node.body for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [node for body in blocks for node in body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


class _LazyFront(ModuleType):
    __all__: list[str]
    _sources: dict[str, str]  # public name -> module that defines it

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
