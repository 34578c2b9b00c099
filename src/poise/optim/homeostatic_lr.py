"""A learning rate that a model raises and lowers itself, by trials on what it has just seen."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

Effect = Mapping[int, int] | Callable[[int], int] | Literal["free"]


@dataclass(frozen=True, slots=True)
class Trial:
    """One decision.

    Args:
        lr: learning rate after it.
        accepted: whether the rate was changed.
        guess: the class that the model saw in the last sample.
        accuracy_leave: accuracy on the memory after a step at the old rate.
        accuracy_take: after a step at the proposed one.
    """

    lr: float
    accepted: bool
    guess: int
    accuracy_leave: float
    accuracy_take: float


class HomeostaticLR:
    r"""Raise or lower the learning rate by what the model recognises, where a trial shows that it helps.

    Every ``interval`` samples the class of the last one decides the direction of a proposal: :math:`\eta \pm s \eta_0`.
    Two trial steps along the present gradient, at the old and at the proposed rate, are compared on the last samples
    seen. If the proposal is strictly better, the rate moves, by the effect of the sample's *true* class: a model that
    recognises its samples wrongly regulates itself wrongly. ``effect="free"`` tries both directions and takes the
    better one, whatever the class: a line search without that coupling, against which the coupling must prove itself.

    The trials are plain gradient steps, also where the optimizer is another one. Parameters, gradients and random
    states are not changed by them. Where there are several param groups, all rates keep their ratios.

    Args:
        optimizer: its learning rate is regulated.
        model: a classifier.
        effect: class -> 1 (raises the rate), -1 (lowers it) or 0; or ``"free"``.
        step: :math:`s`, in units of the initial rate, in (0, 1).
        interval: samples between two decisions.
        memory: samples remembered, with the labels that they had when they were seen.
        min_lr: lowest rate.
        max_lr: highest rate; no bound by default.

    Attributes:
        history: the decisions.
        skipped: decisions that were left out because a gradient was not finite.

    Raises:
        ValueError: if ``step`` is outside (0, 1), ``interval`` or ``memory`` is below 1, or an effect is not -1, 0 or
            1.
        KeyError: in ``observe`` if a class has no effect.
        RuntimeError: in ``observe`` if there are no gradients.

    References:
        Man, Damasio and Neven, "Need is all you need: homeostatic neural networks adapt to concept shift", 2022,
        arXiv:2205.08645.

    Example:
        >>> control = HomeostaticLR(optimizer, model, effect=lambda c: 1 if c >= 5 else -1)
        >>> for x, y in stream:
        ...     optimizer.zero_grad()
        ...     F.cross_entropy(model(x), y).backward()
        ...     control.observe(x, y)
        ...     optimizer.step()
    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module,
        *,
        effect: Effect,
        step: float = 0.1,
        interval: int = 10,
        memory: int = 20,
        min_lr: float = 1e-8,
        max_lr: float | None = None,
    ) -> None:
        if not 0 < step < 1:
            raise ValueError(f"step must lie in (0, 1), got {step}")
        if interval < 1 or memory < 1:
            raise ValueError(f"interval and memory must be at least 1, got {interval} and {memory}")
        if isinstance(effect, Mapping) and not set(effect.values()) <= {-1, 0, 1}:
            raise ValueError(f"effect must be -1, 0 or 1 for every class, got {dict(effect)}")
        self.optimizer, self.model, self.effect = optimizer, model, effect
        self.step, self.interval, self.memory, self.min_lr, self.max_lr = step, interval, memory, min_lr, max_lr
        self.initial_lr = float(optimizer.param_groups[0]["lr"])
        self.seen, self.skipped = 0, 0
        self.history: list[Trial] = []
        self._samples: deque[tuple[Tensor, Tensor]] = deque(maxlen=memory)

    @property
    def lr(self) -> float:
        """The rate of the first param group."""
        return float(self.optimizer.param_groups[0]["lr"])

    @torch.no_grad()
    def observe(self, x: Float[Tensor, "batch ..."], y: Int64[Tensor, " batch"]) -> None:
        """Take in a batch, and decide when it is time; call it after ``backward`` and before ``optimizer.step``.

        Args:
            x: inputs of the batch whose gradients the parameters hold.
            y: its labels.
        """
        before, self.seen = self.seen, self.seen + len(x)
        if len(self._samples) == self.memory and before // self.interval != self.seen // self.interval:
            self._decide(x[-1:], int(y[-1]))
        self._samples.extend(zip(x, y, strict=True))

    def _decide(self, last: Tensor, label: int) -> None:
        grads = {name: p.grad for name, p in self.model.named_parameters() if p.requires_grad and p.grad is not None}
        if not grads:
            raise RuntimeError("observe must be called after backward and before zero_grad, there are no gradients")
        if not all(bool(torch.isfinite(g).all()) for g in grads.values()):
            self.skipped += 1
            return
        guess, move = int(self.model(last).argmax()), self.step * self.initial_lr
        leave = self._accuracy(grads, self.lr)
        if self.effect == "free":
            tried = {self._bounded(self.lr + sign * move): None for sign in (1, -1)}
            scores = {lr: self._accuracy(grads, lr) for lr in tried}
            new = max(scores, key=lambda lr: scores[lr])
            take = scores[new]
        else:
            take = self._accuracy(grads, self._bounded(self.lr + self._effect_of(guess) * move))
            new = self._bounded(self.lr + self._effect_of(label) * move)
        accepted = take > leave
        if accepted:
            self._set(new)
        self.history.append(Trial(self.lr, accepted, guess, leave, take))

    def _accuracy(self, grads: Mapping[str, Tensor], lr: float) -> float:
        moved = {name: p - lr * grads[name] if name in grads else p for name, p in self.model.named_parameters()}
        x, y = (torch.stack(column) for column in zip(*self._samples, strict=True))
        outputs: Tensor = functional_call(self.model, moved, (x,))
        return float((outputs.argmax(1) == y).double().mean())

    def _effect_of(self, label: int) -> int:
        assert not isinstance(self.effect, str)
        if isinstance(self.effect, Mapping):
            if label not in self.effect:
                raise KeyError(f"effect must have every class, got none for {label}")
            return self.effect[label]
        value = self.effect(label)
        if value not in (-1, 0, 1):
            raise ValueError(f"effect must be -1, 0 or 1, got {value} for class {label}")
        return value

    def _bounded(self, lr: float) -> float:
        lr = lr if lr > 0 else self.min_lr
        return max(self.min_lr, lr if self.max_lr is None else min(lr, self.max_lr))

    def _set(self, lr: float) -> None:
        factor = lr / self.lr
        for group in self.optimizer.param_groups:
            group["lr"] = float(group["lr"]) * factor
        self.optimizer.param_groups[0]["lr"] = lr

    def state_dict(self) -> dict[str, Any]:
        """Return everything that is needed to go on; the optimizer keeps the rate."""
        samples = [(x.clone(), y.clone()) for x, y in self._samples]
        return {"seen": self.seen, "skipped": self.skipped, "initial_lr": self.initial_lr, "samples": samples}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`."""
        self.seen, self.skipped, self.initial_lr = state["seen"], state["skipped"], state["initial_lr"]
        self._samples = deque(state["samples"], maxlen=self.memory)
