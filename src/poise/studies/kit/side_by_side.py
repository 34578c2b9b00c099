"""Networks of one architecture that train side by side, as batched products instead of one pass each."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.func import functional_call, vmap

from poise.studies.kit.stacked_layers import STACKED, Kind, stack_tensors, stacked_layers

Net = TypeVar("Net", bound=nn.Module)


class SideBySide(Generic[Net]):
    """Networks of one architecture whose parameters and buffers have a leading axis ``nets``.

    An optimizer that treats every entry by itself (SGD, Adam and their kin) trains each as if it were alone, on the sum
    of their losses; :meth:`scale_gradients` gives each a learning rate or a clip of its own. Networks whose layers all
    have a stacked kind run on those; others run through ``torch.func.vmap``, at more cost per call.

    Args:
        models: of one architecture. They are copied: the copies in :attr:`models` share the trained parameters.
        kinds: layers that have a stacked kind; with none, every network runs through ``vmap``.

    Raises:
        ValueError: if there is no model, or parameters or buffers of one have other names or shapes than the first's.
    """

    def __init__(self, models: Sequence[Net], kinds: Mapping[type[nn.Module], Kind] = STACKED) -> None:
        if not models:
            raise ValueError("models must hold at least one model, got none")
        shapes = [{name: t.shape for name, t in (*m.named_parameters(), *m.named_buffers())} for m in models]
        if any(other != shapes[0] for other in shapes):
            raise ValueError("models must have parameters and buffers of the same names and shapes")
        self.models = [copy.deepcopy(model) for model in models]
        self.nets = len(models)
        self._net: nn.Module = copy.deepcopy(models[0])
        layers = stacked_layers(self.models, kinds)
        self.is_stacked = layers is not None
        for name, layer in (layers or {}).items():
            if name:
                self._net.set_submodule(name, layer)
            else:  # the model is a single layer
                self._net = layer
        if self.is_stacked:
            self.named_parameters: dict[str, Tensor] = dict(self._net.named_parameters())
            self._buffers = dict(self._net.named_buffers())
        else:
            self.named_parameters = {
                name: stack_tensors([m.get_parameter(name).detach() for m in models]).requires_grad_()
                for name, _ in self._net.named_parameters()
            }
            self._buffers = {
                name: torch.stack([m.get_buffer(name) for m in models]) for name, _ in self._net.named_buffers()
            }
        for i, model in enumerate(self.models):
            _share(model, {**self.named_parameters, **self._buffers}, i)

    def parameters(self) -> list[Tensor]:
        """Return the stacked parameters, for an optimizer."""
        return list(self.named_parameters.values())

    def __call__(self, x: Tensor) -> Tensor:
        """Return the outputs of every network on its own examples.

        Args:
            x: of shape (nets, examples, ...).
        """
        if self.is_stacked:
            return self._net(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return vmap(self._one, randomness="error")(self.named_parameters, self._buffers, x)

    @torch.no_grad()
    def evaluate(self, x: Float[Tensor, "nets examples *inputs"]) -> Float[Tensor, "nets examples outputs"]:
        """Return the outputs in evaluation mode, without a graph."""
        self._net.eval()
        outputs = self(x)
        self._net.train()
        return outputs

    def accuracy(
        self, x: Float[Tensor, "nets examples *inputs"], y: Int64[Tensor, "nets examples"]
    ) -> Float[Tensor, " nets"]:
        """Return the fraction of right answers of each network, in evaluation mode. NaN is no answer."""
        logits = self.evaluate(x)
        right = (logits.argmax(-1) == y) & logits.isfinite().all(-1)
        return right.double().mean(1)

    def leaf(self, name: str, first: int, end: int) -> nn.Parameter:
        """Return one name's parameters of networks ``first`` to ``end - 1``, with their gradients, for an optimizer."""
        parameter = self.named_parameters[name]
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        leaf = nn.Parameter(parameter.detach()[first:end])
        leaf.grad = parameter.grad[first:end]
        return leaf

    def zero_grad(self) -> None:
        """Clear the gradients in place: leaves share them."""
        torch._foreach_zero_(self._gradients)

    def gradient_norms(self) -> Float[Tensor, " nets"]:
        """Return the norm of each network's whole gradient."""
        return torch.stack([g.square().flatten(1).sum(1) for g in self._gradients]).sum(0).sqrt()

    def scale_gradients(self, factors: Float[Tensor, " nets"]) -> None:
        """Multiply each network's gradient by a number of its own."""
        for gradient in self._gradients:
            gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)))

    def clip_grad_norm(self, max_norm: float) -> Float[Tensor, " nets"]:
        """Scale each network's gradient to at most this norm, as torch does for one; return the norms before."""
        norms = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1) for g in self._gradients])
        total = torch.linalg.vector_norm(norms, dim=0)
        self.scale_gradients((max_norm / (total + 1e-6)).clamp(max=1.0))
        return total

    @property
    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.named_parameters.values() if p.grad is not None]

    def _one(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(self._net, (parameters, buffers), (x,))


def _share(model: nn.Module, stacked: dict[str, Tensor], i: int) -> None:
    """Let a model's parameters and buffers be views of the stacked ones."""
    for name, parameter in model.named_parameters():
        parameter.data = stacked[name].detach()[i]
    for name, _ in list(model.named_buffers()):
        owner, _, last = name.rpartition(".")
        setattr(model.get_submodule(owner), last, stacked[name][i])
