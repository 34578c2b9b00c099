"""The frame of a remedy: a change to a live run, made from outside, that leaves the script's objects as they were."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Values:
    """The values a remedy accepts: ``above < value < below``; ends that are closed belong to them.

    Args:
        above: lower end.
        below: upper end.
        closed: whether the lower end itself is accepted.
        closed_above: whether the upper end itself is.
        whole: whether only whole numbers are accepted.
    """

    above: float = 0.0
    below: float = math.inf
    closed: bool = False
    closed_above: bool = False
    whole: bool = False

    def __contains__(self, value: float) -> bool:
        low = value >= self.above if self.closed else value > self.above
        high = value <= self.below if self.closed_above else value < self.below
        return low and high and (not self.whole or float(value).is_integer())

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        low = f"of at least {self.above:g}" if self.closed else f"above {self.above:g}"
        upper = "at most" if self.closed_above else "below"
        high = "" if math.isinf(self.below) else f" and {upper} {self.below:g}"
        return f"{kind} {low}{high}"


class Remedy:
    """A change applied to a live run from outside, while the script stays as it is.

    Every hook does nothing here; a remedy overrides the few it needs. The optimizer hooks run around every
    ``optimizer.step()``; the three middlewares wrap functions of ``torch.nn.functional`` and may be traced by
    ``torch.compile``, so they hold only tensor operations. With several remedies, the first one's middleware is the
    outermost and what it changed before a step is put back last.

    Args:
        value: the strength of the remedy; ``None`` takes :attr:`default`.

    Raises:
        TypeError: if ``value`` is no number.
        ValueError: if ``value`` is outside :attr:`values`.
    """

    name: ClassVar[str]
    default: ClassVar[float]
    values: ClassVar[Values] = Values()
    bounds_logits: ClassVar[bool] = False  # of attention, at any size of model; the record has them as they were before

    def __init__(self, value: float | None = None) -> None:
        value = self.default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"value of remedy {self.name} must be {self.values}, got {value!r}")
        if value not in self.values:
            raise ValueError(f"value of remedy {self.name} must be {self.values}, got {value!r}")
        self.value: float = int(value) if self.values.whole else float(value)
        self.notes: list[str] = []

    @property
    def spec(self) -> str:
        """The remedy as the command line takes it, for example ``"lr_scale=0.3"``."""
        return f"{self.name}={repr(self.value).removesuffix('.0')}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.value!r})"

    def code(self) -> str:
        """Return the lines of PyTorch that make the remedy permanent in the user's script."""
        raise NotImplementedError(f"{type(self).__name__} must define code(): how it is made permanent")

    def before_step(self, optimizer: torch.optim.Optimizer, loss: Float[Tensor, ""] | None) -> None:
        """Act just before ``optimizer`` steps; its gradients are final.

        Args:
            optimizer: the optimizer that is about to step.
            loss: detached loss of this step, or ``None`` where no scalar loss was seen.
        """

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Act just after ``optimizer`` has stepped, and put back what :meth:`before_step` changed."""

    def cross_entropy(self, call: Callable[..., Tensor], input: Tensor, target: Tensor, **kwargs: Any) -> Tensor:
        """Wrap ``torch.nn.functional.cross_entropy``; ``call`` is the wrapped function."""
        return call(input, target, **kwargs)

    def attention(
        self, call: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, **kwargs: Any
    ) -> Tensor:
        """Wrap ``torch.nn.functional.scaled_dot_product_attention``."""
        return call(query, key, value, **kwargs)

    def attention_softmax(
        self, call: Callable[..., Tensor], logits: Tensor, dim: int, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Wrap a softmax of attention logits that a script wrote by hand; masked entries are already in."""
        return call(logits, dim, *args, **kwargs)

    def note(self, text: str) -> None:
        """Keep a remark for the report, once."""
        if text not in self.notes:
            self.notes.append(text)
