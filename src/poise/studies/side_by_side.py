"""Networks of one architecture that train side by side: any module, its parameters stacked and its calls batched."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap


class SideBySide:
    """Networks of one architecture whose parameters and buffers have a leading axis ``nets``.

    An optimizer that treats every entry by itself trains each as if it were alone, on the sum of their losses;
    :meth:`scale_gradients` gives each a learning rate or a clip of its own.

    Args:
        models: of one architecture, with parameters of their own. The first also serves as the pattern.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self.nets, self._pattern = len(models), models[0]
        self._parameters, self._buffers = stack_module_state(list(models))

    def parameters(self) -> list[Tensor]:
        """Return the stacked parameters, for an optimizer."""
        return list(self._parameters.values())

    def __call__(self, x: Float[Tensor, "nets examples *inputs"]) -> Float[Tensor, "nets examples outputs"]:
        """Return the outputs of every network on its own examples."""
        return vmap(self._one, randomness="error")(self._parameters, self._buffers, x)

    @torch.no_grad()
    def accuracy(
        self, x: Float[Tensor, "nets examples *inputs"], y: Int64[Tensor, "nets examples"]
    ) -> Float[Tensor, " nets"]:
        """Return the share of right answers of each network, in evaluation mode. NaN is no answer."""
        logits = self.evaluate(x)
        right = (logits.argmax(-1) == y) & logits.isfinite().all(-1)
        return right.double().mean(1)

    @torch.no_grad()
    def evaluate(self, x: Float[Tensor, "nets examples *inputs"]) -> Float[Tensor, "nets examples outputs"]:
        """Return the outputs in evaluation mode, without a graph."""
        self._pattern.eval()
        outputs = self(x)
        self._pattern.train()
        return outputs

    def gradient_norms(self) -> Float[Tensor, " nets"]:
        """Return the norm of each network's whole gradient."""
        squares = [p.grad.square().flatten(1).sum(1) for p in self._parameters.values() if p.grad is not None]
        return torch.stack(squares).sum(0).sqrt()

    def scale_gradients(self, factors: Float[Tensor, " nets"]) -> None:
        """Multiply each network's gradient by a number of its own."""
        for parameter in self._parameters.values():
            if parameter.grad is not None:
                parameter.grad.mul_(factors.view(-1, *[1] * (parameter.ndim - 1)))

    def _one(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(self._pattern, (parameters, buffers), (x,))
