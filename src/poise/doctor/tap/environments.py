"""Environments: objects that an agent resets and steps, and whether they move between updates."""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterable, Iterator
from types import FrameType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from poise.doctor.tap.state import TapState
from poise.doctor.tap.user_line import is_user_frame

_CHANGES = 3  # between updates, until an environment is known to be stepped there
_SPARSEST = 32  # updates per change; rarer ones are evaluations
_LOOKS = 512  # updates after which no more changes are looked for
_SEARCHES = 3  # updates before which environments are looked for
_SHOWN = 64  # numbers of an array that are compared
_DEPTH, _ITEMS = 3, 64


class Environments:
    """Notes, once, that an environment was stepped between updates: event ``environment``.

    An environment is an object with ``reset()`` and a ``step()`` that returns a tuple of three or more, or one of
    Gymnasium. Those are found among the variables of the script's running functions, one level of attributes and lists
    included. That it was stepped shows in its state: a number or an array of it has changed since the last update. (A
    hook in the script's own class would cost time in every step, and would be seen.) The data of such a run are made by
    the model, so that a loss on them does not measure progress.

    Args:
        state: of the tap.
    """

    def __init__(self, state: TapState) -> None:
        self.state = state
        self._found: dict[int, Any] = {}
        self._last: dict[int, tuple] = {}
        self._looks = self._changes = 0

    def before_step(self) -> None:
        """Look whether an environment has moved since the last update."""
        state = self.state
        if self._looks >= _LOOKS or "environment" in state.explained or (self._looks >= _SEARCHES and not self._found):
            return
        self._looks += 1
        if self._looks <= _SEARCHES:
            self._found |= {id(e): e for e in environments_in(sys._getframe(1))}
        moved = None
        for key, environment in self._found.items():
            now = _state_of(environment)
            if key in self._last and self._last[key] != now:
                moved = environment
            self._last[key] = now
        self._changes += moved is not None
        if moved is not None and self._changes >= _CHANGES and self._changes * _SPARSEST >= self._looks:
            state.explained.add("environment")
            state.sink.acting = True
            state.sink.event(state.step, "environment", {"class": type(moved).__name__, "updates": self._looks})
            self.close()

    def close(self) -> None:
        """Let go of the script's objects."""
        self._found.clear()
        self._last.clear()


def environments_in(frame: FrameType | None) -> Iterator[Any]:
    """Yield the environments among the variables of the script's running functions."""
    while frame is not None:
        if is_user_frame(frame):
            for value in list(frame.f_locals.values()):
                yield from _environments_of(value)
            if frame.f_code.co_name != "<module>":
                for name in frame.f_code.co_names:
                    if name in frame.f_globals:
                        yield from _environments_of(frame.f_globals[name])
        frame = frame.f_back


def _environments_of(value: Any) -> Iterator[Any]:
    inner: Iterable[Any] = ()
    if isinstance(value, list | tuple):
        inner = value[:_ITEMS]
    elif not isinstance(value, type) and type(value).__module__.partition(".")[0] not in ("torch", "numpy", "builtins"):
        inner = list(getattr(value, "__dict__", {}).values())[:_ITEMS]
    for candidate in (value, *inner):
        if is_environment(candidate):
            yield candidate


def is_environment(value: Any) -> bool:
    """Return whether ``value`` is reset and stepped as an environment is."""
    kind = type(value)
    if isinstance(value, type | Tensor) or kind.__module__.partition(".")[0] == "torch":
        return False
    gymnasium = sys.modules.get("gymnasium")
    if gymnasium is not None and isinstance(value, (gymnasium.Env, gymnasium.vector.VectorEnv)):
        return True
    step = getattr(kind, "step", None)
    return isinstance(step, FunctionType) and callable(getattr(kind, "reset", None)) and _returns_a_transition(step)


def _returns_a_transition(step: FunctionType) -> bool:
    """Return whether a function returns a tuple of three or more: observation, reward, end."""
    before = None
    for instruction in dis.get_instructions(step):
        is_built = before is not None and before.opname == "BUILD_TUPLE" and (before.arg or 0) >= 3
        if is_built and instruction.opname == "RETURN_VALUE":
            return True
        before = instruction
    return False


def _state_of(value: Any, depth: int = _DEPTH) -> tuple:
    """Return what can be compared of an object's attributes, those of wrapped environments included."""
    try:
        attributes = list(vars(value).items())[:_ITEMS]
    except TypeError:
        return ()
    return tuple((name, _comparable(attribute, depth)) for name, attribute in attributes)


def _comparable(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, bool | int | float | complex | str):
        return value
    if isinstance(value, np.ndarray):
        return id(value), value.ravel()[:_SHOWN].tobytes() if value.dtype != object else None
    if isinstance(value, Tensor):
        return id(value), value._version
    if isinstance(value, list | tuple):
        return len(value), tuple(_comparable(item, depth - 1) for item in value[-_ITEMS:]) if depth > 0 else None
    if depth > 0 and hasattr(value, "__dict__") and not isinstance(value, type | torch.nn.Module):
        return _state_of(value, depth - 1)
    return None
