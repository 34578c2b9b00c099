"""The wrapper of every hook of the watch."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import torch

from poise.doctor.tap.state import TapState
from poise.tools.clock import cpu_seconds


class HasState(Protocol):
    """A hook group."""

    state: TapState


G = TypeVar("G", bound=HasState)
P = ParamSpec("P")
R = TypeVar("R")


def guarded(method: Callable[Concatenate[G, P], R]) -> Callable[Concatenate[G, P], R | None]:
    """Time the watch's own work, and keep its errors from the run.

    What the watch itself computes there is not watched: a hook within a hook does nothing, and so does a hook in
    another thread than the one that trains.
    """

    @functools.wraps(method)
    def call(self: G, *args: P.args, **kwargs: P.kwargs) -> R | None:
        state = self.state
        if state.off or (state.thread is not None and state.thread != threading.get_ident()):
            return None
        if state.busy and not _wait_for_another_thread(state):
            return None
        start = time.perf_counter()
        cpu_start = cpu_seconds() if state.sampler.sampling else None  # too slow for a hook that runs on every step
        state.busy, state.busy_thread = True, threading.get_ident()
        # Hooks nest where the watch runs a forward pass itself: each puts back what it found.
        outer, enabled = state.grad_enabled, torch.is_grad_enabled()
        state.grad_enabled = enabled
        try:
            with _outside_modes(), torch._C.DisableTorchFunction():
                torch._C._set_grad_enabled(False)  # what torch.no_grad() does, at a twentieth of its cost
                try:
                    return method(self, *args, **kwargs)
                finally:
                    torch._C._set_grad_enabled(enabled)
        except Exception as error:  # of any kind: the user's run continues without the watch
            state.fail(error)
            return None
        finally:
            state.grad_enabled = outer
            state.busy = False
            # In a forward pass that the watch runs itself, the hook around it is timed already.
            if not state.shadowing:
                state.budget.charge(start, cpu_start)

    return call


def _wait_for_another_thread(state: TapState) -> bool:
    """Return whether the hook that runs was one of another thread, begun before this one was followed, and is over."""
    end = time.perf_counter() + _LONGEST_WAIT
    while state.busy and state.thread is not None and state.busy_thread != state.thread:
        if time.perf_counter() > end:
            return False
        time.sleep(0)
    return not state.busy


_LONGEST_WAIT = 1.0  # seconds
_NO_CONTEXT = nullcontext()


def _outside_modes() -> AbstractContextManager[Any]:
    """Keep the watch's own operations from the script's dispatch modes, which count or record what is computed."""
    if not torch._C._len_torch_dispatch_stack():
        return _NO_CONTEXT
    from torch.utils._python_dispatch import _disable_current_modes

    return _disable_current_modes()
