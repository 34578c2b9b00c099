"""The options of a command, read without loading what the full command line needs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from typer.models import OptionInfo

_CONVERTERS: dict[type, Callable[[str], Any]] = {str: str, int: int, float: float, Path: Path}


@dataclass(frozen=True)
class Invocation:
    """How a command was called.

    Args:
        options: name of a parameter -> value, for the options that were given.
        script: the first argument.
        args: what follows it.
    """

    options: dict[str, Any]
    script: str
    args: list[str]


def quick_options(command: Callable[..., Any], words: Sequence[str]) -> Invocation | None:
    """Read options, a script, and the script's own arguments; ``None`` where that takes the full command line.

    Typer loads Pydantic for the first value that it reads, which takes longer than everything else before a script's
    first line. The options are those that ``command`` declares for Typer. Anything else (``--help``, a mistake, several
    short flags in one word) is left to Typer, with its messages.

    Args:
        command: a function with parameters ``Annotated[..., typer.Option(...)]``.
        words: what follows the name of the command.
    """
    declared = _declared(command)
    rest, options = list(words), dict[str, Any]()
    while rest and rest[0].startswith("-"):
        flag, equals, text = rest.pop(0).partition("=")
        if flag not in declared:
            return None
        name, kind, is_list = declared[flag]
        if kind is bool:
            if equals:
                return None
            options[name] = True
            continue
        if not equals:
            if not rest or rest[0].startswith("-"):
                return None
            text = rest.pop(0)
        elif not flag.startswith("--"):
            return None
        try:
            value = _CONVERTERS[kind](text)
        except ValueError:
            return None
        options[name] = [*options.get(name, []), value] if is_list else value
    return Invocation(options, rest[0], rest[1:]) if rest else None


def _declared(command: Callable[..., Any]) -> dict[str, tuple[str, type, bool]]:
    """Return flag -> name of the parameter, type of a value, whether there may be several."""
    hints = get_type_hints(command, include_extras=True)
    declared: dict[str, tuple[str, type, bool]] = {}
    for name in inspect.signature(command).parameters:
        annotated = get_args(hints[name])
        info = next((extra for extra in annotated[1:] if isinstance(extra, OptionInfo)), None)
        if info is None or info.min is not None or info.max is not None:
            continue
        kind, is_list = _kind(annotated[0])
        if kind in _CONVERTERS or kind is bool:
            # Typer stores the first flag as a default, and separates the two later.
            flags = [flag for flag in (info.default, *(info.param_decls or ())) if isinstance(flag, str)]
            declared |= dict.fromkeys(flags or [f"--{name.replace('_', '-')}"], (name, kind, is_list))
    return declared


def _kind(annotation: Any) -> tuple[type, bool]:
    """Return the type of one value, and whether there may be several: of ``list[str] | None``, ``str`` and true."""
    plain = [part for part in get_args(annotation) if part is not NoneType]
    if get_origin(annotation) is list:
        return plain[0], True
    return _kind(plain[0]) if plain else (annotation, False)
