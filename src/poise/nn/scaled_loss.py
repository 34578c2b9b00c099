"""The loss of a model as a function of one factor per parameter: for MetaInit and GradInit."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from poise.nn.dropout_off import dropout_off
from poise.report import Report, Table, line_chart
from poise.tools.random_states import seeded_random_states


@dataclass(frozen=True)
class ScalingReport:
    """What an initialiser that rescales parameters has done.

    Args:
        title: the initialiser.
        norms: norm before and after, by parameter.
        skipped: why a parameter was left alone, by its name.
        history: what was measured on the way: pairs of step and value, by name.
    """

    title: str
    norms: dict[str, tuple[float, float]]
    skipped: dict[str, str]
    history: dict[str, list[tuple[int, float]]]

    def report(self) -> Report:
        """Return it as a report with the norms, what was left alone, and the values on the way."""
        rows = [[name, before, after, after / before] for name, (before, after) in self.norms.items()]
        report = Report(self.title, f"{len(self.norms)} parameters scaled, {len(self.skipped)} left alone.")
        report.add(Table("Norms", ["parameter", "before", "after", "factor"], rows))
        if self.skipped:
            report.add(Table("Left alone", ["parameter", "reason"], list(self.skipped.items())))
        for name, values in self.history.items():
            if values:
                at, measured = zip(*values, strict=True)
                report.add(line_chart(name.capitalize(), {name: (at, measured)}, "step", name))
        return report


class ScaledLoss:
    """The mean loss of a batch, at any values of a model's parameters, without a trace in the model.

    Args:
        model: float32 or float64.
        loss_fn: a criterion (a module such as ``nn.CrossEntropyLoss()``, or a function of ``torch.nn.functional``) for
            batches that are pairs of inputs and targets or mappings with ``"labels"``; or any
            ``loss_fn(model, batch)`` that returns a mean.

    Attributes:
        names: of the trainable parameters, each once.
        values: the parameters themselves.

    Raises:
        TypeError: if a trainable parameter is not float32 or float64.
        ValueError: if none is trainable, or one is not finite.
    """

    def __init__(self, model: nn.Module, loss_fn: Any) -> None:
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not named:
            raise ValueError("no parameter of the model requires a gradient")
        for name, p in named.items():
            if p.dtype not in (torch.float32, torch.float64):
                raise TypeError(f"parameters must be float32 or float64, got {p.dtype} for {name!r}; use model.float()")
            if not p.isfinite().all():
                raise ValueError(f"parameters must be finite, {name!r} is not")
        self.names = list(named)
        self.values = [p.detach() for p in named.values()]
        self._loss = _loss_of(loss_fn)
        self._bound = _Bound(model)

    def scaled(self, factors: Sequence[Tensor]) -> list[Tensor]:
        """Return the parameters times their factors."""
        return [f.to(p.dtype) * p for f, p in zip(factors, self.values, strict=True)]

    def __call__(self, parameters: Sequence[Tensor], batch: Any) -> Float[Tensor, ""]:
        """Return the mean loss of a batch with these values in the place of the model's parameters.

        Raises:
            TypeError: if the loss is no tensor.
            ValueError: if it is not a finite scalar.
        """
        state = {f"model.{name}": p for name, p in zip(self.names, parameters, strict=True)}
        state.update((name, buffer.clone()) for name, buffer in self._bound.named_buffers())
        loss = torch.func.functional_call(self._bound, state, (self._loss, batch))
        if not isinstance(loss, Tensor):
            raise TypeError(f"loss_fn must return a tensor, got {type(loss).__name__}")
        if loss.ndim or not loss.isfinite():
            got = f"shape {tuple(loss.shape)}" if loss.ndim else str(loss.item())
            raise ValueError(f"loss_fn must return a finite scalar, got {got}")
        return loss

    @torch.no_grad()
    def apply(self, factors: Sequence[float]) -> dict[str, tuple[float, float]]:
        """Multiply the model's parameters by factors in place; return the norms before and after of those not zero."""
        norms = {}
        for name, p, factor in zip(self.names, self.values, factors, strict=True):
            before = p.double().norm().item()
            p.mul_(factor)
            if before:
                norms[name] = before, p.double().norm().item()
        return norms


@contextmanager
def without_a_trace(model: nn.Module, seed: int) -> Iterator[None]:
    """Compute with gradients, dropout off and random numbers from a seed; put modes and random states back at the end.

    Attention is computed by elementary operations, since fused kernels have no second derivative.

    Args:
        model: the model.
        seed: of Python's, NumPy's and torch's generators, which a data loader may draw from.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with ExitStack() as stack:
        stack.enter_context(seeded_random_states(device, seed))
        for context in (dropout_off(model), torch.inference_mode(False), torch.enable_grad()):
            stack.enter_context(context)
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


def endless(data: Any) -> Iterator[Any]:
    """Yield a batch again and again, or the batches of an iterable in turn.

    Args:
        data: a batch (a tensor, a mapping, or a tuple or list with a tensor directly in it), or an iterable of batches.

    Raises:
        TypeError: if it is neither.
        ValueError: if it holds no batch, or cannot be gone through again.
    """
    if isinstance(data, Tensor | Mapping) or (
        isinstance(data, tuple | list) and any(isinstance(part, Tensor) for part in data)
    ):
        yield from itertools.repeat(data)
    if not isinstance(data, Iterable):
        raise TypeError(f"data must be a batch or an iterable of batches, got {type(data).__name__}")
    for turn in itertools.count():
        batches = 0
        for batch in data:
            batches += 1
            yield batch
        if not batches:
            had = "it cannot be gone through again; give a list or a loader" if turn else "it holds none"
            raise ValueError(f"data must give batches as long as they are needed, but {had}")


def derivatives(output: Tensor, inputs: Sequence[Tensor], create_graph: bool = False) -> list[Tensor]:
    """Return the gradient, zero where the output does not depend on an input."""
    if not output.requires_grad:
        return [torch.zeros_like(x) for x in inputs]
    return list(torch.autograd.grad(output, inputs, create_graph=create_graph, materialize_grads=True))


class _Bound(nn.Module):
    """Lets ``functional_call`` reach a model that any function uses."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, loss: Callable[[nn.Module, Any], Tensor], batch: Any) -> Tensor:
        return loss(self.model, batch)


def _loss_of(loss_fn: Any) -> Callable[[nn.Module, Any], Tensor]:
    if isinstance(loss_fn, nn.Module) or getattr(loss_fn, "__module__", "") == "torch.nn.functional":
        return lambda model, batch: _supervised(loss_fn, model, batch)
    if callable(loss_fn):
        return loss_fn
    raise TypeError(f"loss_fn must be a criterion or a function of model and batch, got {type(loss_fn).__name__}")


def _supervised(criterion: Callable[..., Tensor], model: nn.Module, batch: Any) -> Tensor:
    if isinstance(batch, Mapping) and "labels" in batch:
        outputs = model(**{key: value for key, value in batch.items() if key != "labels"})
        targets = batch["labels"]
    elif isinstance(batch, tuple | list) and len(batch) == 2:
        outputs, targets = model(batch[0]), batch[1]
    else:
        raise TypeError(
            f"a batch for a criterion must be a pair (inputs, targets) or a mapping with 'labels', got "
            f"{type(batch).__name__}; for another kind give loss_fn(model, batch)"
        )
    return criterion(getattr(outputs, "logits", outputs), targets)
