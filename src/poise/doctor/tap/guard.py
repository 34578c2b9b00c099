"""What every moment of the watch is wrapped in."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

import torch

if TYPE_CHECKING:
    from poise.doctor.tap.tap import Tap

P = ParamSpec("P")
R = TypeVar("R")


def guarded(method: Callable[Concatenate[Tap, P], R]) -> Callable[Concatenate[Tap, P], R | None]:
    """Time the watch's own work, and let no fault of it reach the run.

    What the watch itself computes there is not watched: a moment within a moment does nothing.
    """

    @functools.wraps(method)
    def call(self: Tap, *args: P.args, **kwargs: P.kwargs) -> R | None:
        if self.off or self.busy:
            return None
        start = time.perf_counter()
        self.busy = True
        # Moments nest where the watch runs a forward pass itself: each puts back what it found.
        outer, enabled = self.grad_enabled, torch.is_grad_enabled()
        self.grad_enabled = enabled
        torch._C._set_grad_enabled(False)  # what torch.no_grad() does, at a twentieth of its cost
        try:
            return method(self, *args, **kwargs)
        except Exception as error:  # whatever it is, the user's run goes on without the watch
            self.fail(error)
            return None
        finally:
            torch._C._set_grad_enabled(enabled)
            self.grad_enabled = outer
            self.busy = False
            # In a forward pass that the watch runs itself, the moment around it is on the clock already.
            if not self.shadowing:
                self.budget.charge(start)

    return call
