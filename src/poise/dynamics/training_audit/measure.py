"""How the audit of a training run measures: sharpness, threshold, density of eigenvalues, noise of batches."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer

from poise.curvature import Hessian, LinearOperator, Preconditioned, as_objective, spectral_density
from poise.curvature.loss.batches import as_batches
from poise.curvature.loss.objective import Objective, Supervised
from poise.dynamics.edge_of_stability.edge import EdgeDistance, distance_to_edge
from poise.dynamics.edge_of_stability.largest_stable_lr import largest_stable_lr
from poise.dynamics.edge_of_stability.local_point import LocalPoint, local_point
from poise.dynamics.sgd_noise.example_sample import two_samples
from poise.dynamics.sgd_noise.sgd_stability import SGDStability
from poise.dynamics.training_audit.effort import Effort, affordable_effort
from poise.dynamics.training_audit.facts import TrainingFacts
from poise.dynamics.training_audit.noise import audited_noise, why_no_noise_analysis
from poise.dynamics.training_audit.sharpness import (
    AuditedSharpness,
    Watched,
    audited_sharpness,
    is_adaptive,
    preconditioned_by,
)
from poise.tools.progress_bar import progress_bar

_SMALL = 100_000


def measure(
    model: nn.Module,
    loss_fn: Any,
    data: Any,
    optimizer: Optimizer,
    batch_size: int,
    *,
    progress: bool | None,
    seed: int,
    examples: int | None,
    seconds: float,
) -> TrainingFacts:
    """Return what the audit of a training run measures; arguments and errors are those of :func:`audit`."""
    objective, batches, n = _checked_data(loss_fn, data, batch_size, examples, seconds)
    params = _moved_parameters(model, optimizer)
    generator = torch.Generator().manual_seed(seed)
    with _bar(progress) as phase:
        with phase("what fits into the time", 2):
            effort = affordable_effort(model, objective, batches, params, seconds, examples, generator)
        sample, others = two_samples(objective, batches, effort.examples, generator)
        point = local_point(model, objective, iter(sample), params)
        spectrum = _Spectrum(model, objective, sample, others, params, optimizer, effort, seed)
        distance_to_edge(optimizer, 0.0, 0.0, point.grad_norm)  # an edge that is not known is reported before the work
        plain = spectrum.top(phase, "sharpness", preconditioned=False)
        preconditioned = (
            spectrum.top(phase, "sharpness preconditioned by the optimizer", True) if is_adaptive(optimizer) else None
        )
        density = spectrum.density(phase)
        noise, reason = _noise(phase, model, objective, sample, n, optimizer, batch_size, params, plain, generator)
    decisive = preconditioned or plain
    return TrainingFacts(
        optimizer=type(optimizer).__name__,
        lr=float(optimizer.param_groups[0]["lr"]),
        plain_sgd=is_plain_sgd(optimizer),
        batch_size=batch_size,
        n=n,
        used=effort.examples,
        parameters=spectrum.hessian.shape[0],
        point=point,
        plain=plain,
        preconditioned=preconditioned,
        distance=_distance(optimizer, decisive, point),
        largest_lr=_stable_lrs(optimizer, decisive, point),
        density=density,
        directions=spectrum.direction(decisive),
        noise=noise,
        no_noise=reason,
        seed=seed,
    )


class _Spectrum:
    """The Hessian of the sample, plain and preconditioned by the optimizer."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        sample: Sequence[Any],
        others: Sequence[Any],
        params: Sequence[str] | None,
        optimizer: Optimizer,
        effort: Effort,
        seed: int,
    ) -> None:
        self.hessian = Hessian(model, objective, iter(sample), params)
        self._others = Hessian(model, objective, iter(others), params, mode="rebuild") if others else None
        self._optimizer, self._effort = optimizer, effort
        self._generator = torch.Generator(self.hessian.device).manual_seed(seed)

    def top(self, phase: Any, name: str, preconditioned: bool) -> AuditedSharpness:
        operator, others = self._operator(self.hessian, preconditioned), None
        if self._others is not None:
            others = self._operator(self._others, preconditioned)
        with phase(name, min(self._effort.products, 4 * operator.shape[0])) as advance:
            elsewhere = None if others is None else Watched(others, advance)
            return audited_sharpness(Watched(operator, advance), elsewhere, self._effort, self._generator)

    def density(self, phase: Any) -> Any:
        operator = self._operator(self.hessian, is_adaptive(self._optimizer))
        small = operator.shape[0] <= _SMALL
        probes, steps = (4, min(40, operator.shape[0])) if small else (1, min(12, self._effort.basis))
        probes = probes if self._effort.products > probes * steps else 1
        steps = min(steps, self._effort.products)
        with phase("density of eigenvalues", probes * steps) as advance:
            return spectral_density(Watched(operator, advance), probes, steps, self._generator)

    def direction(self, top: AuditedSharpness) -> dict[str, float]:
        """Return the part of each parameter in the squared length of the sharpest direction."""
        operator = self._operator(self.hessian, is_adaptive(self._optimizer))
        moved = top.vector * operator.diag_inv_sqrt.double() if isinstance(operator, Preconditioned) else top.vector
        moved = moved / torch.linalg.vector_norm(moved)
        flat = self.hessian.flat
        parts = flat.split(moved)
        return {name: float(part.square().sum()) for name, part in zip(flat.names, parts, strict=True)}

    def _operator(self, hessian: Hessian, preconditioned: bool) -> LinearOperator:
        return preconditioned_by(hessian, self._optimizer) if preconditioned else hessian


def _checked_data(
    loss_fn: Any, data: Any, batch_size: int, examples: int | None, seconds: float
) -> tuple[Objective, list[Any], int]:
    objective, batches = as_objective(loss_fn), as_batches(data)
    sizes = [objective.n_examples(batch) for batch in batches]
    if 0 in sizes:
        raise ValueError(f"data: every batch needs an example; batch {sizes.index(0)} is empty")
    n = sum(sizes)
    if not isinstance(batch_size, numbers.Integral) or not 1 <= batch_size <= n:
        raise ValueError(f"batch_size must be a whole number from 1 to the number of examples {n}, got {batch_size!r}")
    if examples is not None and not 1 <= examples <= n:
        raise ValueError(f"examples must be from 1 to the number of examples {n}, got {examples!r}")
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds must be positive and finite, got {seconds!r}")
    return objective, batches, n


def _moved_parameters(model: nn.Module, optimizer: Optimizer) -> list[str] | None:
    """Return the names of the trainable parameters that the optimizer holds; ``None`` if those are all."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    moved = [name for name, p in trainable.items() if id(p) in held]
    if trainable and not moved:
        raise ValueError("optimizer must hold parameters of the model, got one that holds none of them")
    return None if len(moved) == len(trainable) else moved


def is_plain_sgd(optimizer: Optimizer) -> bool:
    """Whether an optimizer takes the steps that the analysis of noise is about: SGD without anything else."""
    extras = ("momentum", "weight_decay", "nesterov")
    return type(optimizer) is SGD and not any(group[extra] for group in optimizer.param_groups for extra in extras)


def _distance(optimizer: Optimizer, sharpness: AuditedSharpness, point: LocalPoint) -> EdgeDistance:
    found = distance_to_edge(optimizer, sharpness.value, sharpness.error_bound, point.grad_norm or None)
    return replace(found, low=sharpness.low / found.edge)


def _stable_lrs(optimizer: Optimizer, sharpness: AuditedSharpness, point: LocalPoint) -> tuple[float, float, float]:
    ends = (sharpness.high, sharpness.value, sharpness.low)
    low, best, high = (largest_stable_lr(optimizer, end, point.grad_norm or None) for end in ends)
    return low, best, high


def _noise(
    phase: Any,
    model: nn.Module,
    objective: Objective,
    sample: Sequence[Any],
    n: int,
    optimizer: Optimizer,
    batch_size: int,
    params: Sequence[str] | None,
    plain: AuditedSharpness,
    generator: torch.Generator,
) -> tuple[SGDStability | None, str | None]:
    reason = why_no_noise_analysis(model, objective)
    if reason is None and plain.value <= 0:
        reason = "no direction is curved upwards here."
    if reason is not None or not isinstance(objective, Supervised):
        return None, reason
    lr = float(optimizer.param_groups[0]["lr"]) if is_plain_sgd(optimizer) else None
    with phase("noise of mini-batches", 1):
        try:
            found = audited_noise(
                model,
                objective,
                sample,
                n,
                lr=lr,
                batch_size=int(batch_size),
                params=params,
                sharpness=plain.value,
                generator=generator,
            )
        except ValueError as error:
            return None, f"{error}."
    return found, None


@contextmanager
def _bar(show: bool | None) -> Iterator[Any]:
    """Give a context per phase of the work, in which a function moves the bar on."""
    with progress_bar(show) as bar:

        @contextmanager
        def phase(name: str, total: int) -> Iterator[Callable[[], None]]:
            task = bar.add_task(name, total=total)
            yield lambda: bar.advance(task)
            bar.update(task, completed=total)

        yield phase
