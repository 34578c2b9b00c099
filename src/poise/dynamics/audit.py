"""One call that says how far a training run is from the edge of its stability."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn
from torch.optim import Optimizer

from poise.curvature import Hessian, LinearOperator, Preconditioned, as_objective, spectral_density
from poise.curvature.loss.batches import as_batches
from poise.curvature.loss.objective import Objective, Supervised
from poise.dynamics.audit_effort import Effort, affordable_effort
from poise.dynamics.audit_noise import audited_noise, why_no_noise_analysis
from poise.dynamics.audit_report import AuditFacts, audit_report, is_plain_sgd
from poise.dynamics.audit_sharpness import (
    AuditedSharpness,
    Watched,
    as_optimizer_sees,
    audited_sharpness,
    is_adaptive,
)
from poise.dynamics.edge_of_stability.edge import EdgeDistance, distance_to_edge
from poise.dynamics.edge_of_stability.largest_stable_lr import largest_stable_lr
from poise.dynamics.edge_of_stability.local_point import LocalPoint, local_point
from poise.dynamics.sgd_noise.example_sample import two_samples
from poise.dynamics.sgd_noise.sgd_stability import SGDStability
from poise.report import Report

_SMALL = 100_000


def audit(
    model: nn.Module,
    loss_fn: Any,
    data: Any,
    optimizer: Optimizer,
    batch_size: int,
    *,
    progress: bool | None = None,
    seed: int = 0,
    examples: int | None = None,
    seconds: float = 40.0,
) -> Report:
    """Return how far a model and its optimizer are from the edge of stability, and how sure that is.

    The report holds the sharpness with its error bound (for an adaptive optimizer also as it sees it), the optimizer's
    threshold, the largest stable learning rates for full batches and for this batch size, the smallest stable batch,
    the density of eigenvalues, and what the analysis does not cover. Nothing of the model and the optimizer changes.

    A large problem is cut to what takes about ``seconds``: fewer examples, fewer products, bounds in the place of exact
    limits. The report says so. That depends on the speed of the machine; give ``examples`` where the same numbers have
    to come out again.

    Args:
        model: float32 or float64, without chance in its forward pass (``model.eval()`` where there is dropout).
        loss_fn: a criterion such as ``nn.CrossEntropyLoss()``, a :class:`poise.curvature.Supervised`, or any
            ``loss_fn(model, batch)`` that returns a mean (then without the noise of mini-batches).
        data: a batch of any kind or an iterable of batches, kept in memory.
        optimizer: what trains the model, see :func:`edge`; an adaptive one after its first step. Parameters that it
            does not hold count as fixed.
        batch_size: examples a step, from 1 to the number of examples.
        progress: whether to show a progress bar; by default on a terminal.
        seed: of samples and start vectors.
        examples: how many examples to look at; by default as many as there is time for.
        seconds: about how long it may take on large problems.

    Raises:
        TypeError: if the optimizer's edge is not known, or an argument has another type.
        ValueError: if data is empty, ``batch_size`` or a setting is out of range, the loss is random or not finite, the
            optimizer holds no trainable parameter of the model, or an adaptive one has taken no step.

    References:
        Cohen et al. (2021), arXiv:2103.00065; Cohen et al. (2022), arXiv:2207.14484; Mulayoff and Michaeli (2024),
        arXiv:2306.07850; Wu and Su (2023), arXiv:2305.17490.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> data = torch.eye(2), torch.zeros(2, 1)  # the loss has the curvature 1 in both directions
        >>> report = audit(model, nn.MSELoss(), data, torch.optim.SGD(model.parameters(), lr=0.5), batch_size=2)
        >>> report.verdict
        'below the edge'
    """
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
        seen = spectrum.top(phase, "sharpness as the optimizer sees it", True) if is_adaptive(optimizer) else None
        density = spectrum.density(phase)
        noise, reason = _noise(phase, model, objective, sample, n, optimizer, batch_size, params, plain, generator)
    decisive = seen or plain
    facts = AuditFacts(
        optimizer=optimizer,
        batch_size=batch_size,
        n=n,
        used=effort.examples,
        parameters=spectrum.hessian.shape[0],
        point=point,
        plain=plain,
        seen=seen,
        distance=_distance(optimizer, decisive, point),
        largest_lr=_stable_lrs(optimizer, decisive, point),
        density=density,
        directions=spectrum.direction(decisive),
        noise=noise,
        no_noise=reason,
        seed=seed,
    )
    return audit_report(facts)


class _Spectrum:
    """The Hessian of the sample, plain and as the optimizer sees it."""

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
        """Return the share of each parameter in the (squared) direction that goes first."""
        operator = self._operator(self.hessian, is_adaptive(self._optimizer))
        moved = top.vector * operator.diag_inv_sqrt.double() if isinstance(operator, Preconditioned) else top.vector
        moved = moved / torch.linalg.vector_norm(moved)
        flat = self.hessian.flat
        parts = flat.split(moved)
        return {name: float(part.square().sum()) for name, part in zip(flat.names, parts, strict=True)}

    def _operator(self, hessian: Hessian, preconditioned: bool) -> LinearOperator:
        return as_optimizer_sees(hessian, self._optimizer) if preconditioned else hessian


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
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    shown = console.is_terminal if show is None else show
    with Progress(*columns, console=console, disable=not shown, transient=True) as bar:

        @contextmanager
        def phase(name: str, total: int) -> Iterator[Callable[[], None]]:
            task = bar.add_task(name, total=total)
            yield lambda: bar.advance(task)
            bar.update(task, completed=total)

        yield phase
