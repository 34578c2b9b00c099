"""Packages whose public names are imported on first use."""

from __future__ import annotations

import ast
import sys
from importlib import import_module
from importlib.abc import InspectLoader
from types import ModuleType
from typing import Any


def lazy_front(package: str) -> None:
    """Import the public names of a package when they are first asked for.

    The package's ``__init__.py`` lists its imports under ``if TYPE_CHECKING:``, where type checkers, editors and
    documentation tools read them, and ends with ``lazy_front(__name__)``. Whoever imports one name then waits for
    the one file that defines it, and not for all files of the package and everything that these import.

    Args:
        package: ``__name__`` of the package.

    Raises:
        ImportError: if the source of the package cannot be read, or has no imports under ``if TYPE_CHECKING:``.
    """
    module = sys.modules[package]
    homes = _homes(module)
    if not homes:
        raise ImportError(f"package {package!r} has no imports under 'if TYPE_CHECKING:', so there is nothing to load")
    module.__dict__["_homes"] = homes
    module.__class__ = LazyFront


class LazyFront(ModuleType):
    """A package after :func:`lazy_front`."""

    _homes: dict[str, str]  # public name -> module that defines it

    def __getattr__(self, name: str) -> Any:
        if name not in self.__dict__.get("_homes", {}):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value = getattr(import_module(self._homes[name]), name)
        self.__dict__[name] = value
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # The import of a submodule binds it to its package. Where a function is named after its file, the name belongs
        # to the function, whoever imports the file first.
        if not (name in self._homes and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._homes} - {"_homes", "TYPE_CHECKING", "lazy_front"})


def _homes(module: ModuleType) -> dict[str, str]:
    loader = module.__spec__.loader if module.__spec__ is not None else None
    source = loader.get_source(module.__name__) if isinstance(loader, InspectLoader) else None
    if source is None:
        raise ImportError(f"the source of package {module.__name__!r} cannot be read")
    blocks = [node for node in ast.parse(source).body if isinstance(node, ast.If) and _is_type_checking(node.test)]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def _is_type_checking(test: ast.expr) -> bool:
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"
