"""Models of one shape that train side by side, in one pass of stacked tensors instead of one pass each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel


class ModelStack:
    """Several models whose parameters lie in one tensor per name, model ``r`` at index ``r``.

    The models keep working: their parameters become views of the stacked ones.

    Args:
        models: modules of the same class and shapes, without buffers.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self.models = list(models)
        stacked, _ = stack_module_state(self.models)
        self.parameters: dict[str, Tensor] = {k: v.detach().requires_grad_() for k, v in stacked.items()}
        for name, parameter in self.parameters.items():
            parameter.grad = torch.zeros_like(parameter)
            for model, own in zip(self.models, parameter.detach(), strict=True):
                model.get_parameter(name).data = own

    def __call__(self, x: Tensor) -> Tensor:
        """Return every model's output for its own input, ``x[r]``."""
        # The fused kernels have no rule for vmap and would run once per model.
        with sdpa_kernel(SDPBackend.MATH):
            return vmap(lambda own, one: functional_call(self.models[0], own, (one,)))(self.parameters, x)

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
