"""Exponential moving average of a model's weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class EMA:
    r"""A second copy of a model whose weights follow the first slowly.

    .. math:: \bar\theta \leftarrow d \bar\theta + (1 - d) \theta

    Floating buffers are averaged like weights, so that running statistics of BatchNorm belong to the averaged network
    as nearly as an average can (``torch.optim.swa_utils.update_bn`` makes them exact); integer buffers are copied.
    With ``every=k`` an update is made at each k-th call, with :math:`d^k`: the same horizon at a k-th of the cost.

    Args:
        model: the model that is trained. Its copy, ``ema.module``, starts with the same weights, in evaluation mode.
        decay: :math:`d` per call of :meth:`update`, in [0, 1].
        every: calls of :meth:`update` between two updates.

    Attributes:
        module: the averaged model, for evaluation: dropout and batch statistics are off, as after ``eval()``; its
            parameters require no gradient.

    Raises:
        ValueError: if ``decay`` is outside [0, 1] or ``every`` is below 1.

    References:
        Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992;
        D'Angelo et al., NeurIPS 2024, arXiv:2310.04415.

    Example:
        >>> ema = EMA(model, decay=0.999)
        >>> for x, y in loader:
        ...     loss_fn(model(x), y).backward()
        ...     optimizer.step()
        ...     ema.update()
        >>> evaluate(ema.module)
    """

    def __init__(self, model: nn.Module, decay: float = 0.999, every: int = 1) -> None:
        if not 0 <= decay <= 1:
            raise ValueError(f"decay must lie in [0, 1], got {decay}")
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.decay, self.every, self.steps = decay, every, 0
        self._model = model
        self.module = copy.deepcopy(model).requires_grad_(False).eval()
        self._wide = self._widen()

    @torch.no_grad()
    def update(self) -> None:
        """Count a training step, and move the average when it is time; call it after ``optimizer.step()``."""
        self.steps += 1
        if self.steps % self.every:
            return
        fraction = 1 - self.decay**self.every
        ours, theirs = _tensors(self.module), _tensors(self._model)
        groups: dict[tuple[torch.dtype, torch.device], tuple[list[Tensor], list[Tensor]]] = {}
        for index, (average, current) in enumerate(zip(ours, theirs, strict=True)):
            if average.is_floating_point():
                wide = self._wide.get(index, average)
                averages, currents = groups.setdefault((wide.dtype, wide.device), ([], []))
                averages.append(wide)
                currents.append(current.to(wide.dtype))
            else:
                average.copy_(current)
        for averages, currents in groups.values():
            torch._foreach_lerp_(averages, currents, fraction)
        for index, wide in self._wide.items():
            ours[index].copy_(wide)

    @contextmanager
    def applied(self) -> Iterator[nn.Module]:
        """Put the averaged weights into the model itself for a while, for code that evaluates only that."""
        self._swap()
        try:
            yield self._model
        finally:
            self._swap()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that is needed to go on."""
        wide = {index: tensor.clone() for index, tensor in self._wide.items()}
        return {"module": self.module.state_dict(), "steps": self.steps, "wide": wide}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`."""
        self.module.load_state_dict(state["module"])
        self.steps = state["steps"]
        self._wide = {index: tensor.clone() for index, tensor in state["wide"].items()}

    @torch.no_grad()
    def _swap(self) -> None:
        for a, b in zip(_tensors(self.module), _tensors(self._model), strict=True):
            kept = a.clone()
            a.copy_(b)
            b.copy_(kept)

    def _widen(self) -> dict[int, Tensor]:
        """Float32 copies of the half-precision tensors, by their position."""
        narrow = {torch.float16, torch.bfloat16}
        return {i: t.detach().float() for i, t in enumerate(_tensors(self.module)) if t.dtype in narrow}


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
