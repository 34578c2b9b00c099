"""A training criterion as a function of a model's outputs: value, curvature in the outputs, size of its mean."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from poise.curvature.loss.per_example import over_examples


class Criterion(ABC):
    """The mean loss of a batch as a function of the outputs.

    Attributes:
        curvature: ``"mse"`` or ``"ce"`` where the Hessian in the outputs has a closed form, else ``"other"``.
        is_mean: whether the loss of a batch is a mean over its terms, not their sum.
    """

    curvature = "other"
    is_mean = True

    @abstractmethod
    def mean(self, outputs: Tensor, targets: Any) -> Float[Tensor, ""]:
        """Return the mean loss."""

    @abstractmethod
    def hessian(self, outputs: Tensor, targets: Any) -> Callable[[Tensor], Tensor]:
        """Return v -> (Hessian of :meth:`mean` in the outputs) v, for v shaped like the outputs."""

    @abstractmethod
    def n_terms(self, targets: Any, n_examples: int) -> float:
        """Return by what :meth:`mean` divides the sum of its terms."""

    @abstractmethod
    def example_sums(self, outputs: Tensor, targets: Any, n_examples: int) -> Float[Tensor, " n"]:
        """Return the sum of the terms of each example; together they are ``mean * n_terms``."""


class MeanSquaredError(Criterion):
    """``nn.MSELoss``: the squared error averaged over examples and outputs, with Hessian 2 I / (number of outputs)."""

    curvature = "mse"

    def mean(self, outputs: Tensor, targets: Tensor) -> Float[Tensor, ""]:
        """Return the mean squared error.

        Raises:
            ValueError: if the shapes differ.
        """
        if outputs.shape != targets.shape:
            raise ValueError(
                f"outputs and targets of the squared error must have one shape; "
                f"got {tuple(outputs.shape)} and {tuple(targets.shape)}"
            )
        return (outputs - targets).square().mean()  # F.mse_loss crashes torch.func.linearize

    def hessian(self, outputs: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
        """Return v -> 2 v / (number of outputs)."""
        return lambda v: v * (2.0 / outputs.numel())

    def n_terms(self, targets: Tensor, n_examples: int) -> float:
        """Return the number of squares."""
        return float(targets.numel())

    def example_sums(self, outputs: Tensor, targets: Tensor, n_examples: int) -> Float[Tensor, " n"]:
        """Return each example's sum of squares."""
        return (outputs - targets).square().reshape(n_examples, -1).sum(1)


class CrossEntropy(Criterion):
    """``nn.CrossEntropyLoss``, whose Hessian in the logits of one term is ``s (diag(p) - p p^T)``.

    p is the softmax of the logits and s the total weight of the term's targets: 1, or the class weight; 0 where the
    target is ``ignore_index``.

    Args:
        weight: one weight per class.
        ignore_index: target of terms that do not count.
        label_smoothing: fraction of the target spread over all classes.
    """

    curvature = "ce"

    def __init__(self, weight: Tensor | None = None, ignore_index: int = -100, label_smoothing: float = 0.0) -> None:
        self.weight = weight
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing

    def mean(self, outputs: Tensor, targets: Tensor) -> Float[Tensor, ""]:
        """Return the mean cross entropy."""
        return self._cross_entropy(outputs, targets, "mean")

    def hessian(self, outputs: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
        """Return v -> s (p * v - p (p . v)) per term, divided by the number of terms."""
        classes = 0 if outputs.ndim == 1 else 1
        p = outputs.detach().softmax(classes)
        s = self._term_weights(targets, outputs.shape[classes], outputs.dtype).unsqueeze(classes)
        scaled = p * s / self.n_terms(targets, 1)
        return lambda v: scaled * (v - (p * v).sum(classes, keepdim=True))

    def n_terms(self, targets: Tensor, n_examples: int) -> float:
        """Return the total class weight of the targets that count."""
        if targets.is_floating_point():
            return float(targets.numel() / targets.shape[0 if targets.ndim == 1 else 1])
        kept = targets != self.ignore_index
        if self.weight is None:
            return float(kept.sum())
        return float(self.weight.to(targets.device)[targets[kept]].sum())

    def example_sums(self, outputs: Tensor, targets: Tensor, n_examples: int) -> Float[Tensor, " n"]:
        """Return each example's weighted sum of cross entropies."""
        return self._cross_entropy(outputs, targets, "none").reshape(n_examples, -1).sum(1)

    def _cross_entropy(self, outputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
        return F.cross_entropy(
            outputs,
            targets,
            weight=None if self.weight is None else self.weight.to(outputs.device),
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction=reduction,
        )

    def _term_weights(self, targets: Tensor, n_classes: int, dtype: torch.dtype) -> Tensor:
        """The weights of the classes averaged over each (smoothed) target."""
        if self.weight is None and not targets.is_floating_point():
            return (targets != self.ignore_index).to(dtype)
        weight = torch.ones(n_classes) if self.weight is None else self.weight
        weight = weight.to(targets.device, dtype)
        if targets.is_floating_point():
            classes = 0 if targets.ndim == 1 else 1
            return self._smoothed(targets.to(dtype).movedim(classes, -1) @ weight, weight)
        kept = targets != self.ignore_index
        return self._smoothed(weight[targets.where(kept, 0)], weight) * kept

    def _smoothed(self, on_target: Tensor, weight: Tensor) -> Tensor:
        return (1 - self.label_smoothing) * on_target + self.label_smoothing * weight.mean()


class AnyCriterion(Criterion):
    """Any twice differentiable ``criterion(outputs, targets)`` that averages over examples.

    Args:
        criterion: returns the mean loss.
    """

    def __init__(self, criterion: Callable[[Tensor, Any], Tensor]) -> None:
        self.criterion = criterion

    def mean(self, outputs: Tensor, targets: Any) -> Float[Tensor, ""]:
        """Return the criterion."""
        return self.criterion(outputs, targets)

    def hessian(self, outputs: Tensor, targets: Any) -> Callable[[Tensor], Tensor]:
        """Return v -> product, from differentiating the criterion twice in the outputs."""
        with torch.enable_grad():
            at = outputs.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.criterion(at, targets), at, create_graph=True)
        if not gradient.requires_grad:
            return torch.zeros_like
        return lambda v: torch.autograd.grad(gradient, at, v, retain_graph=True, materialize_grads=True)[0]

    def n_terms(self, targets: Any, n_examples: int) -> float:
        """Return the number of examples."""
        return float(n_examples)

    def example_sums(self, outputs: Tensor, targets: Any, n_examples: int) -> Float[Tensor, " n"]:
        """Return the criterion of each example alone.

        Raises:
            ValueError: if outputs have no row for each example.
        """
        if outputs.shape[0] != n_examples:
            raise ValueError(
                f"losses per example need outputs with one row per example ({n_examples}); got {tuple(outputs.shape)}"
            )
        batch, size = (outputs, targets), max(n_examples, 1)
        alone = over_examples(lambda _, example: (self.criterion(*example),), (), batch, n_examples, size)
        return torch.cat([losses for (losses,) in alone])


class SumOf(Criterion):
    """``reduction="sum"`` of a criterion that is known as a mean: the loss of a batch is the sum of its terms.

    Args:
        criterion: the mean.
    """

    is_mean = False

    def __init__(self, criterion: MeanSquaredError | CrossEntropy) -> None:
        self.criterion, self.curvature = criterion, criterion.curvature

    def mean(self, outputs: Tensor, targets: Any) -> Float[Tensor, ""]:
        """Return the sum; of several batches the mean of their sums is taken."""
        return self.example_sums(outputs, targets, 1).sum()

    def hessian(self, outputs: Tensor, targets: Any) -> Callable[[Tensor], Tensor]:
        """Return v -> product, that of the mean times the number of terms."""
        product, terms = self.criterion.hessian(outputs, targets), self.criterion.n_terms(targets, 1)
        return lambda v: product(v) * terms

    def n_terms(self, targets: Any, n_examples: int) -> float:
        """Return 1: batches count alike, whatever their size."""
        return 1.0

    def example_sums(self, outputs: Tensor, targets: Any, n_examples: int) -> Float[Tensor, " n"]:
        """Return the sum of the terms of each example."""
        return self.criterion.example_sums(outputs, targets, n_examples)


class AnySum(AnyCriterion):
    """Any other criterion with ``reduction="sum"``."""

    is_mean = False

    def n_terms(self, targets: Any, n_examples: int) -> float:
        """Return 1: batches count alike, whatever their size."""
        return 1.0


def as_criterion(criterion: Any) -> Criterion:
    """Return what is known of a torch criterion, or of any function of outputs and targets.

    Args:
        criterion: ``nn.MSELoss()``, ``nn.CrossEntropyLoss()``, their functional forms, those with
            ``functools.partial``, or any function of outputs and targets that returns a mean. With ``reduction="sum"``
            the loss of a batch is its sum, and that of several batches the mean of their sums.

    Returns:
        The criterion with its curvature in the outputs where that is known.

    Raises:
        ValueError: if its ``reduction`` is neither ``"mean"`` nor ``"sum"``.
    """
    if isinstance(criterion, Criterion):
        return criterion
    settings = dict(criterion.keywords) if isinstance(criterion, functools.partial) else {}
    function = criterion.func if isinstance(criterion, functools.partial) else criterion
    reduction = settings.pop("reduction", getattr(criterion, "reduction", "mean"))
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction of the criterion must be 'mean' or 'sum', got {reduction!r}")
    known = _known(function, settings)
    if known is None:
        return AnyCriterion(criterion) if reduction == "mean" else AnySum(criterion)
    return known if reduction == "mean" else SumOf(known)


def _known(function: Any, settings: dict[str, Any]) -> MeanSquaredError | CrossEntropy | None:
    """The criterion whose curvature in the outputs has a closed form, as a mean."""
    if type(function) is nn.CrossEntropyLoss:
        return CrossEntropy(function.weight, function.ignore_index, function.label_smoothing)
    if function is F.cross_entropy and settings.keys() <= {"weight", "ignore_index", "label_smoothing"}:
        return CrossEntropy(**settings)
    if type(function) is nn.MSELoss or (function is F.mse_loss and not settings):
        return MeanSquaredError()
    return None
