"""Character GPTs of one shape that train side by side, as batched matrix products instead of one pass each."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from poise.nn import QKNorm
from poise.studies.character_gpt import CharacterGPT


class ModelStack:
    """Several models whose parameters lie in one tensor per name, model ``r`` at index ``r``.

    The models keep working: their parameters become views of the stacked ones.

    Args:
        models: of one shape.

    Raises:
        ValueError: if a model has parameters of other names or shapes than the first.
    """

    def __init__(self, models: Sequence[CharacterGPT]) -> None:
        shapes = [{name: p.shape for name, p in model.named_parameters()} for model in models]
        if any(other != shapes[0] for other in shapes):
            raise ValueError("models must have parameters of the same names and shapes")
        self.models, self.net = list(models), copy.deepcopy(models[0])
        for name, module in models[0].named_modules():
            if type(module) in STACKED:
                same = [model.get_submodule(name) for model in models]
                self.net.set_submodule(name, STACKED[type(module)](same))
        self.parameters = dict(self.net.named_parameters())
        for name, parameter in self.parameters.items():
            parameter.grad = torch.zeros_like(parameter)
            for model, own in zip(models, parameter.detach(), strict=True):
                model.get_parameter(name).data = own

    def __call__(self, ids: Int64[Tensor, "models batch time"]) -> Float[Tensor, "models batch time classes"]:
        """Return every model's logits for its own batch."""
        x = (self.net.tokens(ids) + self.parameters["positions.weight"][:, None]).flatten(0, 1)
        for block in self.net.blocks:
            x = block(x)
        return self.net.head(self.net.norm(x)).unflatten(0, ids.shape[:2])

    def leaf(self, name: str, first: int, end: int) -> nn.Parameter:
        """Return one name's parameters of models ``first`` to ``end - 1``, with their gradients, for an optimizer."""
        parameter = self.parameters[name]
        assert parameter.grad is not None
        leaf = nn.Parameter(parameter.detach()[first:end])
        leaf.grad = parameter.grad[first:end]
        return leaf

    def zero_grad(self) -> None:
        """Clear the gradients in place: leaves share them."""
        torch._foreach_zero_(self._gradients)

    def clip_grad_norm(self, max_norm: float) -> Float[Tensor, " models"]:
        """Scale each model's gradient to at most this norm, as torch does for one model; return the norms before."""
        norms = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1) for g in self._gradients])
        total = torch.linalg.vector_norm(norms, dim=0)
        scale = (max_norm / (total + 1e-6)).clamp(max=1.0)
        for gradient in self._gradients:
            gradient.mul_(scale.view(-1, *[1] * (gradient.ndim - 1)))
        return total

    @property
    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.parameters.values() if p.grad is not None]


# Layers whose batches lie behind one another: the first dimension of an input is models x batch.


class StackedLinear(nn.Module):
    """Linear layers without bias."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.weight = _stack(layers, "weight")

    def forward(self, x: Float[Tensor, "models_batch *time inputs"]) -> Float[Tensor, "models_batch *time outputs"]:
        """Return each model's product."""
        flat = x.reshape(len(self.weight), -1, x.shape[-1])
        return torch.bmm(flat, self.weight.mT).view(*x.shape[:-1], -1)


class StackedLayerNorm(nn.Module):
    """Layer norms without bias."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        assert isinstance(layers[0], nn.LayerNorm)
        self.weight, self.eps = _stack(layers, "weight"), layers[0].eps

    def forward(self, x: Float[Tensor, "models_batch *time width"]) -> Float[Tensor, "models_batch *time width"]:
        """Return the normalised input times each model's gain."""
        return _normalise(x, self.weight, self.eps)


class StackedQKNorm(nn.Module):
    """Norms of queries and keys."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        assert isinstance(layers[0], QKNorm)
        assert layers[0].kind == "layer"
        self.query_gain, self.key_gain = _stack(layers, "query_gain"), _stack(layers, "key_gain")
        self.eps = layers[0].eps

    def forward(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Return the normalised queries and keys, each times its model's gain."""
        return _normalise(query, self.query_gain, self.eps), _normalise(key, self.key_gain, self.eps)


class StackedEmbedding(nn.Module):
    """Embeddings, whose ids keep the dimension of the models."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.weight = _stack(layers, "weight")

    def forward(self, ids: Int64[Tensor, "models batch time"]) -> Float[Tensor, "models batch time width"]:
        """Look each model's ids up in its own table."""
        models, rows, _ = self.weight.shape
        return F.embedding(ids + torch.arange(models)[:, None, None] * rows, self.weight.flatten(0, 1))


STACKED = {
    nn.Linear: StackedLinear,
    nn.LayerNorm: StackedLayerNorm,
    nn.Embedding: StackedEmbedding,
    QKNorm: StackedQKNorm,
}


def _stack(layers: Sequence[nn.Module], name: str) -> nn.Parameter:
    return nn.Parameter(torch.stack([layer.get_parameter(name).detach() for layer in layers]))


def _normalise(x: Tensor, gain: Float[Tensor, "models width"], eps: float) -> Tensor:
    normal = F.layer_norm(x, x.shape[-1:], eps=eps)
    return (normal.reshape(len(gain), -1, x.shape[-1]) * gain[:, None]).view(x.shape)
