"""Whether targets have anything to do with their inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from poise.doctor.probes.probe import Probe
from poise.doctor.tap.loss_node import loss_node

if TYPE_CHECKING:
    from poise.doctor.tap.backward_pass import BackwardPass
    from poise.doctor.tap.sink import Sink

_ROWS, _FEATURES = 64, 512  # of a batch
_EXAMINED = (200, 400)  # examples, at which the relation is measured
_MOST_CLASSES = 64
_RIDGE = 0.1  # of the mean diagonal of a kernel


class RelationProbe(Probe):
    """``target_relation``: how surely targets can be predicted from inputs, in standard deviations of pure chance.

    A kernel regression, linear and with the median distance as width, is fitted to one half of the distinct examples
    seen on sampled steps and predicts the other, and the reverse. The number is the larger one of the two correlations
    of predictions with targets, times the square root of the number of examples. The model has no part in it: what it
    cannot learn is told from what nobody can learn. A relation that takes many examples to see (a parity of many bits)
    is missed.

    It is measured with 200 examples and, if they were not decisive, with 400; and only where the loss is one function
    of torch and the model is given one tensor of one row per target.

    References:
        Gretton et al., Kernel methods for measuring independence, JMLR 2005.
    """

    def __init__(self) -> None:
        self._batch: Tensor | None = None
        self._inputs: list[Tensor] = []
        self._targets: list[Tensor] = []
        self._count = 0
        self._left = list(_EXAMINED)

    def model_inputs(self, sink: Sink, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the batch until its targets are known."""
        values = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
        alone = len(values) == 1 and values[0].dim() >= 2 and len(values[0]) > 1
        self._batch = values[0] if self._left and alone else None

    def loss_root(self, sink: Sink, backward: BackwardPass) -> None:
        """Keep the targets, and measure when there are enough."""
        batch, self._batch = self._batch, None
        node = loss_node(backward.root) if batch is not None and self._left else None
        if node is None or batch is None or batch.is_sparse or len(node.target) != len(batch):
            return
        if node.kind == "classes":
            if node.classes > _MOST_CLASSES:
                return
            target = F.one_hot(node.target[:_ROWS].long(), node.classes).float()
        else:
            target = node.target[:_ROWS].float().reshape(min(len(batch), _ROWS), -1)[:, :_MOST_CLASSES]
        self._inputs.append(_features(batch.detach()[:_ROWS]))
        self._targets.append(target)
        self._count += len(target)
        if self._count >= self._left[0]:
            self._measure(sink)

    def _measure(self, sink: Sink) -> None:
        x, y = _distinct(torch.cat(self._inputs), torch.cat(self._targets))
        if len(x) < self._left[0]:
            return
        self._left.pop(0)
        relation = relation_of(x, y)
        sink.observe("target_relation", relation)
        if relation > 6 or not self._left:
            self._left.clear()
            self._inputs.clear()
            self._targets.clear()


def relation_of(x: Float[Tensor, "row feature"], y: Float[Tensor, "row output"]) -> float:
    """Return how far held-out predictions of ``y`` from ``x`` are above chance, in standard deviations."""
    x, y = x.double(), y.double() - y.double().mean(0)
    x = (x - x.mean(0)) / x.std(0).clamp_min(1e-6 * float(x.std()) + 1e-12)
    half = len(x) // 2
    first, second = slice(0, half), slice(half, 2 * half)
    best = -float("inf")
    squares = torch.cdist(x, x).square()
    for kernel in (x @ x.T / x.shape[1], torch.exp(-squares / squares[squares > 0].median())):
        sum_of = [_explained(kernel, y, a, b) for a, b in ((first, second), (second, first))]
        best = max(best, sum(sum_of) / len(sum_of) ** 0.5)
    return best


def _explained(kernel: Tensor, y: Tensor, fitted: slice, left: slice) -> float:
    block = kernel[fitted, fitted]
    ridge = _RIDGE * block.diagonal().mean() * torch.eye(len(block), dtype=block.dtype, device=block.device)
    predicted = kernel[left, fitted] @ torch.linalg.solve(block + ridge, y[fitted] - y[fitted].mean(0))
    truth = y[left] - y[left].mean(0)
    predicted = predicted - predicted.mean(0)
    # Each example has one term; under independence they have no mean.
    terms = (predicted * truth).sum(1)
    return float(terms.sum() / terms.square().sum().sqrt().clamp_min(1e-30))


def _features(batch: Tensor) -> Tensor:
    flat = batch.reshape(len(batch), -1)
    step = max(1, -(-flat.shape[1] // _FEATURES))
    return torch.nan_to_num(flat[:, ::step].float())


def _distinct(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the examples without those that were seen before: their target is known whatever the others are."""
    _, group = torch.unique(x, dim=0, return_inverse=True)
    first = torch.full((int(group.max()) + 1,), len(x), device=x.device)
    first = first.scatter_reduce(0, group, torch.arange(len(x), device=x.device), "amin").sort().values
    return x[first], y[first]
