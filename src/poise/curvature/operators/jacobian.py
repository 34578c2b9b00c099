"""Jacobians and gradients of single examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from poise.curvature.loss.evaluation import Evaluation
from poise.curvature.loss.objective import as_supervised
from poise.curvature.loss.per_example import Parameters, check_examples_are_independent, over_examples


def per_example_jacobians(
    model: nn.Module, data: Any, objective: Any, params: Sequence[str] | None = None, chunk_size: int = 64
) -> Iterator[Float[Tensor, "n outputs P"]]:
    """Yield the Jacobians of the outputs in the parameters, for a chunk of examples at a time.

    Nothing of the model changes. The order of examples is that of the data.

    Args:
        model: float32 or float64, without layers that mix examples.
        data: a batch or an iterable of batches.
        objective: a criterion for batches of inputs and targets, or a :class:`Supervised`; only its definition of
            inputs and outputs matters, so that a batch may be the inputs alone.
        params: names of parameters or of modules; by default all that require gradients.
        chunk_size: most examples at once.

    Raises:
        ValueError: if BatchNorm is in train mode, outputs are random or not finite, or ``chunk_size`` is below 1.
        TypeError: if ``objective`` does not separate outputs and loss.
    """
    evaluation = Evaluation(model, as_supervised(objective, "per_example_jacobians"), data, params)
    check_examples_are_independent(evaluation.model)
    evaluation.examine(evaluation.outputs)
    return jacobians_of(evaluation, chunk_size)


def jacobians_of(evaluation: Evaluation, chunk_size: int = 64) -> Iterator[Float[Tensor, "n outputs P"]]:
    """Yield the Jacobians of single examples, for a chunk of them at a time."""

    def outputs(parameters: Parameters, example: Any) -> Tensor:
        return evaluation.outputs_of(example, parameters).reshape(-1)

    for jacobians in _chunks(evaluation, torch.func.jacrev(outputs), chunk_size):
        yield torch.cat([j.flatten(2) for j in jacobians], dim=2)


def per_example_gradients(
    model: nn.Module, data: Any, objective: Any, params: Sequence[str] | None = None, chunk_size: int = 64
) -> Iterator[Float[Tensor, "n P"]]:
    """Yield the gradients of the loss of single examples, for a chunk of examples at a time.

    They are scaled so that their mean over all data is the gradient of the mean loss; see :class:`EmpiricalFisher`.

    Args:
        model: float32 or float64, without layers that mix examples.
        data: a batch or an iterable of batches.
        objective: a criterion for batches of inputs and targets, or a :class:`Supervised`.
        params: names of parameters or of modules; by default all that require gradients.
        chunk_size: most examples at once.

    Raises:
        ValueError: if BatchNorm is in train mode, the loss is random or not finite, or ``chunk_size`` is below 1.
        TypeError: if ``objective`` does not separate outputs and loss.
    """
    evaluation = Evaluation(model, as_supervised(objective, "per_example_gradients"), data, params)
    check_examples_are_independent(evaluation.model)
    evaluation.examine(evaluation.checked_loss)
    return gradients_of(evaluation, chunk_size)


def gradients_of(evaluation: Evaluation, chunk_size: int = 64) -> Iterator[Float[Tensor, "n P"]]:
    """Yield the gradients of single examples, for a chunk of them at a time."""
    supervised = evaluation.supervised
    scale = sum(evaluation.n_examples) / evaluation.total_weight

    def loss(parameters: Parameters, example: Any) -> Tensor:
        outputs = evaluation.outputs_of(example, parameters)
        return scale * supervised.criterion.example_sums(outputs, supervised.targets(example), 1).sum()

    for gradients in _chunks(evaluation, torch.func.grad(loss), chunk_size):
        yield torch.cat([g.flatten(1) for g in gradients], dim=1)


def _chunks(evaluation: Evaluation, function: Any, chunk_size: int) -> Iterator[Parameters]:
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    point = tuple(p.detach() for p in evaluation.flat.tensors)
    for i, n in enumerate(evaluation.n_examples):
        chunks = over_examples(function, point, evaluation.batch(i), n, chunk_size)
        while True:
            with evaluation.measuring():
                chunk = next(chunks, None)
            if chunk is None:
                break
            yield chunk
