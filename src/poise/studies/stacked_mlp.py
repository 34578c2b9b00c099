"""Small networks of several seeds that train side by side, as batched matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn


class StackedMLP(nn.Module):
    """ReLU networks of one shape, one per seed, whose parameters have a leading axis ``nets``.

    An optimizer that treats every entry by itself (SGD, Adam and their kin, with any schedule) trains each as if it
    were alone; the sum of :func:`stacked_cross_entropy` gives each its own gradient. Weights and biases start as those
    of ``torch.nn.Linear``.

    Args:
        seeds: one per network; it decides the initial weights.
        widths: sizes of the input, the hidden layers and the output.
        norm_eps: epsilon of the batch norm behind each hidden layer, which then has no bias; ``None`` for none.
        dtype: of the parameters.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        widths: Sequence[int],
        norm_eps: float | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.nets = len(seeds)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for fan_in, fan_out in pairwise(widths):
            for parameters, rows in ((self.weights, fan_in), (self.biases, 1)):
                unit = [2 * torch.rand(rows, fan_out, generator=g, dtype=dtype) - 1 for g in generators]
                parameters.append(nn.Parameter(torch.stack(unit) / fan_in**0.5))
        self.norms = nn.ModuleList()
        if norm_eps is not None:
            self.biases = self.biases[-1:]
            self.norms.extend(nn.BatchNorm1d(self.nets * w, eps=norm_eps, dtype=dtype) for w in widths[1:-1])

    def forward(self, x: Float[Tensor, "*nets examples inputs"]) -> Float[Tensor, "nets examples outputs"]:
        """Return the outputs of every network, on examples of its own or on common ones."""
        x = x.expand(self.nets, *x.shape[-2:])
        for i, weight in enumerate(self.weights[:-1]):
            x = F.relu(self._normed(i, x @ weight) if self.norms else torch.baddbmm(self.biases[i], x, weight))
        return torch.baddbmm(self.biases[-1], x, self.weights[-1])

    def network(self, i: int) -> nn.Sequential:
        """Return a copy of one network, built of torch's own layers; without batch norm only.

        Raises:
            ValueError: if the stack has batch norm.
        """
        if self.norms:
            raise ValueError("network copies weights and biases; a stack with batch norm has more")
        layers: list[nn.Module] = []
        for weight, bias in zip(self.weights, self.biases, strict=True):
            linear = nn.utils.skip_init(nn.Linear, *weight.shape[1:], dtype=weight.dtype)
            linear.weight.data.copy_(weight[i].T)
            linear.bias.data.copy_(bias[i, 0])
            layers += [linear, nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    def _normed(self, i: int, x: Tensor) -> Tensor:
        """Normalise each unit of each network over the batch."""
        flat = self.norms[i](x.transpose(0, 1).flatten(1))
        return flat.unflatten(1, (self.nets, -1)).transpose(0, 1)


def stacked_cross_entropy(
    logits: Float[Tensor, "nets examples classes"], targets: Int64[Tensor, "*nets examples"]
) -> Float[Tensor, " nets"]:
    """Return the mean cross entropy of each network."""
    targets = targets.expand(logits.shape[:2])
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(logits.shape[:2]).mean(1)


@torch.no_grad()
def stacked_accuracy(
    model: StackedMLP, inputs: Float[Tensor, "examples inputs"], targets: Int64[Tensor, " examples"]
) -> Float[Tensor, " nets"]:
    """Return the share of right answers of each network, batch norm in evaluation mode."""
    training = model.training
    model.eval()
    right = model(inputs).argmax(-1) == targets
    model.train(training)
    return right.double().mean(1)


def batch_indices(seeds: Sequence[int], examples: int, steps: int, batch: int) -> Int64[Tensor, "steps nets batch"]:
    """Return examples drawn with replacement, for each network from its own seed."""
    drawn = [
        torch.randint(examples, (steps, batch), generator=torch.Generator().manual_seed(1000 + seed)) for seed in seeds
    ]
    return torch.stack(drawn, 1)
