"""Tracebacks as plain Python would have printed them: without the frames of the watch."""

from __future__ import annotations

import contextlib
import os
import runpy
import sys
import threading
import traceback
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

from poise.doctor.main_module import is_outermost

_PACKAGE = str(Path(__file__).parents[1]) + os.sep
_PLUMBING = (contextlib.__file__, runpy.__file__)  # appear in a traceback where the package called them


def hide_own_frames(error: BaseException | None) -> None:
    """Take every frame of poise out of the traceback of ``error``, of its causes, its context and its group."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        one.__traceback__ = _without_own_frames(one.__traceback__)
        waiting += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions


def _without_own_frames(trace: TracebackType | None) -> TracebackType | None:
    kept: list[TracebackType] = []
    after_own = False
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        after_own = file.startswith(_PACKAGE) or is_outermost(trace.tb_frame) or (after_own and file in _PLUMBING)
        if not after_own:
            kept.append(trace)
        trace = trace.tb_next
    for one, following in pairwise([*kept, None]):
        if one is not None:
            one.tb_next = following
    return kept[0] if kept else None


def show_uncaught(error: BaseException) -> int:
    """Do what the interpreter does with an exception that nobody caught; return the exit code, 1 in most cases."""
    hide_own_frames(error)
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
    if sys.version_info >= (3, 12):
        sys.last_exc = error
    try:
        sys.excepthook(type(error), error, error.__traceback__)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except BaseException as fault:
        hide_own_frames(fault)
        fault.__context__ = None  # the interpreter's own call of the hook has none
        with contextlib.suppress(OSError, ValueError):  # a closed stderr
            _print("Error in sys.excepthook:", fault)
            _print("\nOriginal exception was:", error)
    return 1


def _print(heading: str, error: BaseException) -> None:
    if sys.stderr is not None:
        print(heading, file=sys.stderr)
        traceback.print_exception(error)


@contextlib.contextmanager
def hidden_in_threads() -> Iterator[None]:
    """Hide the frames of poise from ``threading.excepthook``, also from one that the script has set."""
    original = threading.ExceptHookArgs

    class _Isinstance(type):
        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, original)

    # Every hook gets its exception through this type.
    class ExceptHookArgs(metaclass=_Isinstance):
        def __new__(cls, values: Any) -> Any:
            made = original(values)
            hide_own_frames(made.exc_value)
            return made if made.exc_value is None else original((*values[:2], made.exc_value.__traceback__, values[3]))

    threading.ExceptHookArgs = ExceptHookArgs  # type: ignore[assignment]
    try:
        yield
    finally:
        threading.ExceptHookArgs = original
