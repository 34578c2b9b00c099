"""Layers of several networks as one: the batches of the networks lie behind one another in the first dimension.

Each is made of the same layer of all networks, and computes what each of them would on its own rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from poise.nn import QKNorm
from poise.studies.kit.character_gpt import Positions

Rows = Float[Tensor, "nets_batch *time features"]


class StackedLinear(nn.Module):
    """Linear layers."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.weight, self.bias = stack(layers, "weight"), stack_if_any(layers, "bias")

    def forward(self, x: Rows) -> Rows:
        """Return each network's product."""
        flat, by_input = x.reshape(len(self.weight), -1, x.shape[-1]), self.weight.mT
        y = flat @ by_input if self.bias is None else torch.baddbmm(self.bias[:, None], flat, by_input)
        return y.view(*x.shape[:-1], -1)


class StackedLayerNorm(nn.Module):
    """Layer norms over the last dimension."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        assert isinstance(layers[0], nn.LayerNorm)
        self.weight, self.bias = stack_if_any(layers, "weight"), stack_if_any(layers, "bias")
        self.eps = layers[0].eps

    def forward(self, x: Rows) -> Rows:
        """Return the normalised input times each network's gain, plus its bias."""
        return normalise(x, self.weight, self.bias, self.eps)


class StackedBatchNorm1d(nn.Module):
    """Batch norms of flat inputs, as one batch norm of all units."""

    running_mean: Float[Tensor, "nets width"]
    running_var: Float[Tensor, "nets width"]
    num_batches_tracked: Int64[Tensor, " nets"]

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        first = layers[0]
        assert isinstance(first, nn.BatchNorm1d)
        assert first.momentum is not None
        self.weight, self.bias = stack(layers, "weight"), stack(layers, "bias")
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, torch.stack([layer.get_buffer(name) for layer in layers]))
        self.eps, self.momentum = first.eps, first.momentum

    def forward(self, x: Float[Tensor, "nets_batch width"]) -> Float[Tensor, "nets_batch width"]:
        """Normalise each unit of each network over its own batch, or by running statistics in evaluation mode."""
        nets = len(self.running_mean)
        if self.training:
            self.num_batches_tracked += 1
        of_units = x.unflatten(0, (nets, -1)).transpose(0, 1).flatten(1)
        statistics = self.running_mean.view(-1), self.running_var.view(-1)
        affine = self.weight.flatten(), self.bias.flatten()
        y = F.batch_norm(of_units, *statistics, *affine, self.training, self.momentum, self.eps)
        return y.unflatten(1, (nets, -1)).transpose(0, 1).flatten(0, 1)


class StackedQKNorm(nn.Module):
    """Norms of queries and keys."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        assert isinstance(layers[0], QKNorm)
        assert layers[0].kind == "layer"
        self.query_gain, self.key_gain = stack(layers, "query_gain"), stack(layers, "key_gain")
        self.eps = layers[0].eps

    def forward(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Return the normalised queries and keys, each times its network's gain."""
        return normalise(query, self.query_gain, None, self.eps), normalise(key, self.key_gain, None, self.eps)


class StackedEmbedding(nn.Module):
    """Embeddings."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.weight = stack(layers, "weight")

    def forward(self, ids: Int64[Tensor, "nets_batch *time"]) -> Float[Tensor, "nets_batch *time width"]:
        """Look each network's ids up in its own table."""
        nets, rows, _ = self.weight.shape
        offset = torch.arange(nets).repeat_interleave(len(ids) // nets) * rows
        return F.embedding(ids + offset.view(-1, *[1] * (ids.ndim - 1)), self.weight.flatten(0, 1))


class StackedPositions(nn.Module):
    """Learned positions, added to a sequence."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.weight = stack(layers, "weight")

    def forward(self, x: Float[Tensor, "nets_batch time width"]) -> Float[Tensor, "nets_batch time width"]:
        """Add each network's own."""
        return (x.unflatten(0, (len(self.weight), -1)) + self.weight[:, None]).flatten(0, 1)


Kind = Callable[[Sequence[nn.Module]], nn.Module]

STACKED: Mapping[type[nn.Module], Kind] = {
    nn.Linear: StackedLinear,
    nn.LayerNorm: StackedLayerNorm,
    nn.BatchNorm1d: StackedBatchNorm1d,
    nn.Embedding: StackedEmbedding,
    Positions: StackedPositions,
    QKNorm: StackedQKNorm,
}


def stack(layers: Sequence[nn.Module], name: str) -> nn.Parameter:
    """Return one parameter of all layers with a leading axis, in the memory layout that it has in one of them."""
    return nn.Parameter(stack_tensors([layer.get_parameter(name).detach() for layer in layers]))


def stack_if_any(layers: Sequence[nn.Module], name: str) -> nn.Parameter | None:
    """Return :func:`stack` of a parameter that the layers may be without."""
    return None if getattr(layers[0], name) is None else stack(layers, name)


def stack_tensors(tensors: Sequence[Tensor]) -> Tensor:
    """Return tensors with a leading axis; a matrix stored by columns stays stored so."""
    first = tensors[0]
    by_columns = first.ndim == 2 and not first.is_contiguous() and first.mT.is_contiguous()
    return torch.stack([t.mT for t in tensors]).mT if by_columns else torch.stack(list(tensors))


def normalise(x: Rows, gain: Tensor | None, bias: Tensor | None, eps: float) -> Rows:
    """Return layer-normalised rows times their network's gain, plus its bias."""
    normal = F.layer_norm(x, x.shape[-1:], eps=eps)
    if gain is not None:
        normal = (normal.reshape(len(gain), -1, x.shape[-1]) * gain[:, None]).view(x.shape)
    if bias is not None:
        normal = (normal.reshape(len(bias), -1, x.shape[-1]) + bias[:, None]).view(x.shape)
    return normal


def stacked_layers(
    models: Sequence[nn.Module], kinds: Mapping[type[nn.Module], Kind] = STACKED
) -> Mapping[str, nn.Module] | None:
    """Return the layers with parameters or buffers, stacked, by name; ``None`` if one has no stacked kind."""
    found: dict[str, nn.Module] = {}
    for name, module in models[0].named_modules():
        if not (module._parameters or module._buffers):
            continue
        kind = kinds.get(type(module))
        if kind is None or (isinstance(module, nn.Embedding) and module.padding_idx is not None):
            return None
        if isinstance(module, nn.BatchNorm1d) and any(
            v is None for v in (module.momentum, module.running_mean, module.weight)
        ):
            return None
        if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) != 1:
            return None
        found[name] = kind([model.get_submodule(name) for model in models])
    return found
