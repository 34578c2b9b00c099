"""The remedies of a run, acting around its optimizer steps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from poise.doctor.remedies.remedy import Remedy
from poise.doctor.stderr import print_line
from poise.doctor.tap.interval import Interval

Function = Callable[..., Tensor]


class Treatment:
    """Lets remedies act, and drops them all as soon as one fails: the run continues untreated, and this is recorded.

    Args:
        remedies: what acts, in this order.
        on_drop: called with the names of dropped remedies and the error.
    """

    def __init__(self, remedies: Sequence[Remedy], on_drop: Callable[[str, str], object]) -> None:
        self.remedies = tuple(remedies)
        self._on_drop = on_drop
        self.acting: dict[int, list[Remedy]] = {}  # by optimizer: one may step inside another

    def wrapping(self, name: str) -> Callable[[Function], Function] | None:
        """Return what wraps a function in the remedies; ``None`` if none of them overrides this method.

        If a remedy fails there, the function itself is called, and all remedies are dropped.

        Args:
            name: of the method of :class:`Remedy` that wraps the function.
        """
        concerned = [r for r in self.remedies if getattr(type(r), name) is not getattr(Remedy, name)]
        if not concerned:
            return None

        def treat(original: Function) -> Function:
            treated = original
            for remedy in concerned:
                treated = functools.partial(getattr(remedy, name), treated)

            def compute(*args: Any, **kwargs: Any) -> Tensor:
                if torch.compiler.is_compiling():
                    return treated(*args, **kwargs)
                if not self.remedies:
                    return original(*args, **kwargs)
                try:
                    return treated(*args, **kwargs)
                except Exception as error:
                    output = original(*args, **kwargs)  # raises by itself if the script's own call was wrong
                    self._drop(error)
                    return output

            return compute

        return treat

    def before_step(self, optimizer: Optimizer, interval: Interval) -> None:
        """Let the remedies act; ``interval`` holds the loss of the step."""
        acting: list[Remedy] = []
        self.acting[id(optimizer)] = acting
        for remedy in self.remedies:
            acting.append(remedy)
            try:
                loss = interval.loss()
                remedy.before_step(optimizer, torch.tensor(loss) if isinstance(loss, float) else loss)
            except Exception as error:
                self._drop(error)
                self.after_step(optimizer)  # what had been changed already is put back
                return

    def after_step(self, optimizer: Optimizer) -> None:
        """Let the remedies undo what they must, last first."""
        for remedy in reversed(self.acting.pop(id(optimizer), [])):
            try:
                remedy.after_step(optimizer)
            except Exception as error:
                self._drop(error)

    def _drop(self, error: Exception) -> None:
        if not self.remedies:
            return
        names = ", ".join(remedy.spec for remedy in self.remedies)
        self.remedies = ()
        reason = f"{type(error).__name__}: {error}"
        print_line(f"poise: remedy {names} failed and was dropped ({reason})".replace("\n", " "))
        self._on_drop(names, str(error))
