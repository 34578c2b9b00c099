"""Learning-rate range test: one short run with a rising learning rate shows how large it may be."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from poise.curvature.loss.batches import to_device
from poise.curvature.loss.objective import Objective, as_objective
from poise.preflight.range_test.lr_range_result import LRRangeTest
from poise.preflight.range_test.lr_suggestion import LRRangeCurve
from poise.tools.random_states import seeded_random_states

Mode = Literal["exp", "linear"]

_FIRST = 5
"""Losses whose mean is the loss at the start."""
_MEDIAN_OF_DIFFERENCES = 0.954
"""Median absolute difference of two normal numbers of standard deviation 1."""
_ROUNDING = 1e-5
"""Fraction of a loss, with any constant added to it, that float32 does not hold over a network."""


def lr_range_test(
    model: nn.Module,
    loss_fn: Any,
    loader: Iterable[Any],
    optimizer: Optimizer | None = None,
    lo: float = 1e-6,
    hi: float = 10,
    num_steps: int = 100,
    *,
    mode: Mode = "exp",
    val_batch: Any = None,
    weight_decays: Sequence[float] = (),
    momentums: Sequence[float] = (),
    stop_factor: float = 1,
    smoothing: float = 0.9,
    seed: int = 0,
) -> LRRangeTest:
    r"""Train for a few steps while the learning rate rises from ``lo`` to ``hi``, and record the loss.

    The run is made on copies: model, optimizer, the generators of Python, NumPy and torch, and those of the loader stay
    bit for bit as they were. A run ends when its loss is not finite, or when its smoothed loss has risen from its
    lowest by more than ``stop_factor`` times what it had fallen to there (or, if that is more, five times its noise
    from step to step). Only differences of losses count: losses may be negative, and a constant added to the loss
    changes nothing. All runs of one test use the same batches and the same random numbers.

    Validation loss is measured with the statistics of ``val_batch`` in BatchNorm layers, for their running averages lag
    behind weights that change fast, and with dropout off.

    Args:
        model: the model, with the weights from which training will start.
        loss_fn: a torch criterion (``nn.CrossEntropyLoss()``) for batches ``(inputs, targets)``, or any
            ``loss_fn(model, batch)`` that returns a mean loss; see ``poise.curvature.Supervised`` for others.
        loader: training batches, at least one; taken again from the start when they end.
        optimizer: of the model's parameters; groups keep the ratios of their learning rates. By default SGD with
            Nesterov momentum 0.9.
        lo: first learning rate.
        hi: last learning rate.
        num_steps: number of steps, at least 10.
        mode: ``"exp"`` for even steps in the logarithm, ``"linear"`` for even steps.
        val_batch: a batch that is not trained on; without it the training loss is used.
        weight_decays: values to compare; the optimizer's own by default.
        momentums: momenta (or first betas) to compare; the optimizer's own by default.
        stop_factor: how much of its fall the smoothed loss may lose again, positive; 1 lets it rise to the first loss.
        smoothing: fraction that the average keeps at each step, in [0, 1); bias-corrected, it starts from the first
            loss.
        seed: of the random numbers that the runs draw.

    Returns:
        The curves, with :meth:`LRRangeTest.suggest` and :meth:`LRRangeTest.report`.

    Raises:
        ValueError: if an argument is out of range, the loader is empty or can be read only once, ``momentums`` or
            ``weight_decays`` are given and the optimizer has none, or the loss does not depend on the model.

    References:
        Smith, "A disciplined approach to neural network hyper-parameters: Part 1", 2018, arXiv:1803.09820.

    Example:
        >>> test = lr_range_test(model, nn.CrossEntropyLoss(), loader, optimizer)
        >>> test.suggest().lr_max
        0.23...
        >>> test.report().save("range.html")
    """
    _check(lo, hi, num_steps, mode, stop_factor, smoothing)
    if isinstance(loader, Iterator):
        raise ValueError(f"loader must be readable more than once, got an iterator ({type(loader).__name__})")
    objective = as_objective(loss_fn)
    optimizer = optimizer or SGD(model.parameters(), lr=lo, momentum=0.9, nesterov=True)
    _check_settings(optimizer, weight_decays, momentums)
    lrs = np.geomspace(lo, hi, num_steps) if mode == "exp" else np.linspace(lo, hi, num_steps)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    curves: list[LRRangeCurve] = []
    notes: set[str] = set()
    for decay, momentum in itertools.product(weight_decays or (None,), momentums or (None,)):
        with _own_random_numbers(seed, device, loader):
            run = _Run(model, objective, optimizer, decay, momentum)
            batches = _Cycle(loader, device)
            train, val, stopped_at = run.go(batches, val_batch, lrs, stop_factor, smoothing)
        if batches.rounds > 1:
            notes.add(f"The loader has {batches.length} batches; it was read again to make {num_steps} steps.")
        kept = len(train)
        held_out = None if val_batch is None else np.asarray(val[:kept])
        curves.append(
            LRRangeCurve(
                lrs[:kept], np.asarray(train), held_out, smoothing, stopped_at, float(lrs[-1]), decay, momentum
            )
        )
    return LRRangeTest(tuple(curves), tuple(sorted(notes)))


class _Run:
    """One run on copies of model and optimizer."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimizer: Optimizer,
        weight_decay: float | None,
        momentum: float | None,
    ) -> None:
        # One call, so that the copied optimizer holds the copied model's parameters.
        self.model, self.optimizer, self.objective = copy.deepcopy((model, optimizer, objective))
        first = float(self.optimizer.param_groups[0]["lr"])
        self.ratios = [float(g["lr"]) / first if first > 0 else 1.0 for g in self.optimizer.param_groups]
        for group in self.optimizer.param_groups:
            if weight_decay is not None:
                group["weight_decay"] = weight_decay
            if momentum is not None and "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            elif momentum is not None:
                group["momentum"] = momentum

    def go(
        self, batches: Iterator[Any], val_batch: Any, lrs: np.ndarray, stop_factor: float, smoothing: float
    ) -> tuple[list[float], list[float], float | None]:
        """Return training and validation losses before each step, and the learning rate that ended the run, if any."""
        train: list[float] = []
        val: list[float] = []
        average, weight = 0.0, 0.0
        smoothed: list[float] = []
        for lr in lrs:
            held_out = None if val_batch is None else self._validate(val_batch)
            loss = self._step(next(batches), float(lr))
            judged = loss if held_out is None else held_out
            if not (math.isfinite(loss) and math.isfinite(judged)):
                return train, val, float(lr)
            train.append(loss)
            val.append(judged)
            average, weight = smoothing * average + (1 - smoothing) * judged, smoothing * weight + 1 - smoothing
            smoothed.append(average / weight)
            if _has_diverged(val, smoothed, stop_factor):
                return train, val, float(lr)
        return train, val, None

    def _step(self, batch: Any, lr: float) -> float:
        """Take one step; return the loss before it."""
        for group, ratio in zip(self.optimizer.param_groups, self.ratios, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr * ratio)
            else:
                group["lr"] = lr * ratio
        losses = []

        def closure() -> Any:
            self.optimizer.zero_grad()
            loss = self.objective.loss(self.model, batch)
            loss.backward()
            losses.append(loss.detach())
            return loss

        self.optimizer.step(closure)  # every optimizer takes a closure, also those that need several gradients
        if all(p.grad is None for group in self.optimizer.param_groups for p in group["params"]):
            raise ValueError("loss_fn must depend on the model that it is called with; no parameter got a gradient")
        return float(losses[0])

    @torch.no_grad()
    def _validate(self, batch: Any) -> float:
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.training = True
        device = next(self.model.parameters()).device
        loss = self.objective.loss(self.model, to_device(batch, device))
        for module, training in modes:
            module.training = training
        return float(loss)


def _has_diverged(losses: list[float], smoothed: list[float], stop_factor: float) -> bool:
    """Whether the smoothed loss has risen too far above its lowest; only differences of losses count."""
    if len(losses) < _FIRST:
        return False
    start, lowest = float(np.mean(losses[:_FIRST])), min(smoothed)
    noise = float(np.median(np.abs(np.diff(losses)))) / _MEDIAN_OF_DIFFERENCES
    rounding = _ROUNDING * max(abs(start), abs(lowest))
    return smoothed[-1] - lowest > stop_factor * max(start - lowest, 5 * noise, rounding)


class _Cycle:
    """The batches of a loader, repeated."""

    def __init__(self, loader: Iterable[Any], device: torch.device) -> None:
        self.loader, self.device, self.rounds, self.length = loader, device, 1, 0
        self._batches = iter(loader)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        batch = next(self._batches, None)
        if batch is None:
            if not self.length:
                raise ValueError("loader must hold at least one batch, got none")
            self.rounds += 1
            self._batches = iter(self.loader)
            batch = next(self._batches)
        if self.rounds == 1:
            self.length += 1
        return to_device(batch, self.device)


@contextmanager
def _own_random_numbers(seed: int, device: torch.device, loader: Any) -> Iterator[None]:
    """Seed all generators that a run may draw from, and set them back at the end, those of the loader too."""
    holders = [
        loader,
        getattr(loader, "sampler", None),
        getattr(getattr(loader, "batch_sampler", None), "sampler", None),
    ]
    generators = [g for h in holders if isinstance(g := getattr(h, "generator", None), torch.Generator)]
    kept = [(g, g.get_state()) for g in generators]
    try:
        with seeded_random_states(device, seed):
            yield
    finally:
        for generator, state in kept:
            generator.set_state(state)


def _check(
    lo: float,
    hi: float,
    num_steps: int,
    mode: str,
    stop_factor: float,
    smoothing: float,
) -> None:
    if not 0 < lo < math.inf:
        raise ValueError(f"lo must be positive and finite, got {lo!r}")
    if not lo < hi < math.inf:
        raise ValueError(f"hi must be finite and greater than lo={lo!r}, got {hi!r}")
    if num_steps < 10:
        raise ValueError(f"num_steps must be at least 10, got {num_steps}")
    if mode not in ("exp", "linear"):
        raise ValueError(f"mode must be 'exp' or 'linear', got {mode!r}")
    if not stop_factor > 0:
        raise ValueError(f"stop_factor must be positive, got {stop_factor!r}")
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing must lie in [0, 1), got {smoothing!r}")


def _check_settings(optimizer: Optimizer, weight_decays: Sequence[float], momentums: Sequence[float]) -> None:
    name, groups = type(optimizer).__name__, optimizer.param_groups
    if not all(0 <= decay < math.inf for decay in weight_decays):
        raise ValueError(f"weight_decays must be finite and not negative, got {list(weight_decays)}")
    if not all(0 <= momentum < 1 for momentum in momentums):
        raise ValueError(f"momentums must lie in [0, 1), got {list(momentums)}")
    if weight_decays and not all("weight_decay" in group for group in groups):
        raise ValueError(f"weight_decays need an optimizer with weight_decay, got {name}")
    if momentums and not all("momentum" in group or "betas" in group for group in groups):
        raise ValueError(f"momentums need an optimizer with momentum or betas, got {name}; leave momentums=()")
