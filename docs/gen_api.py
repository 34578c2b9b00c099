"""Write one API page per room, from the names that the room exports."""

from __future__ import annotations

import ast
import inspect
from importlib import import_module
from pathlib import Path
from types import ModuleType

import mkdocs_gen_files

import poise


def path_of(room: ModuleType, name: str) -> str:
    """Return the dotted path of the place where a public name of a room is defined."""
    value = getattr(room, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        return f"{value.__module__}.{value.__qualname__}"
    # Constants do not hold the place of their definition; the room's imports do.
    return f"{_imports(room)[name]}.{name}"


def _imports(room: ModuleType) -> dict[str, str]:
    tree = ast.parse(Path(str(room.__file__)).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def write_room(name: str) -> None:
    """Write the page of a room."""
    room = import_module(f"poise.{name}")
    with mkdocs_gen_files.open(f"api/{name}.md", "w") as page:
        page.write(f"# poise.{name}\n\n{room.__doc__}\n\n")
        for member in room.__all__:
            page.write(f"::: {path_of(room, member)}\n\n")


with mkdocs_gen_files.open("api/index.md", "w") as index:
    index.write("# API\n\nThe rooms of the package. A room imports only from rooms on floors below its own.\n\n")
    index.write("| room | contents |\n|---|---|\n")
    for room_name in poise._ROOMS:
        write_room(room_name)
        what = (import_module(f"poise.{room_name}").__doc__ or "").strip().splitlines()[0]
        index.write(f"| [`poise.{room_name}`]({room_name}.md) | {what} |\n")
