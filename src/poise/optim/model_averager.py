"""Running average of models, for a stream of checkpoints: one copy in memory, whatever their number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class ModelAverager:
    r"""Weighted mean of the models it is given, one after the other.

    .. math:: \theta_F \leftarrow \theta_F + \frac{c_k}{\sum_{i \le k} c_i} (\theta_k - \theta_F)

    Floating tensors are kept in float32 (float64 if they are float64); of integer tensors the largest value is kept.

    Attributes:
        n: how many models were added.
        total: the sum of their weights.

    References:
        Choshen et al., "Fusing finetuned models for better pretraining", 2022, arXiv:2204.03044.

    Example:
        >>> averager = ModelAverager()
        >>> for path in checkpoints:
        ...     averager.add(torch.load(path))
        >>> model.load_state_dict(averager.average())
    """

    def __init__(self) -> None:
        self.n, self.total = 0, 0.0
        self._mean: dict[str, Tensor] = {}
        self._dtypes: dict[str, torch.dtype] = {}

    @torch.no_grad()
    def add(self, model: nn.Module | Mapping[str, Tensor], weight: float = 1.0) -> None:
        """Take in one model.

        Args:
            model: a module or a state dict with the names and shapes of the first.
            weight: its weight, positive.

        Raises:
            ValueError: if ``weight`` is not positive, or names or shapes differ; the average is then as before.
        """
        if not 0 < weight < float("inf"):
            raise ValueError(f"weight must be positive and finite, got {weight}")
        state = model.state_dict() if isinstance(model, nn.Module) else model
        if not self._mean:
            self._mean = {name: _wide(tensor) for name, tensor in state.items()}
            self._dtypes = {name: tensor.dtype for name, tensor in state.items()}
        else:
            self._require_alike(state)
            self._move(state, weight / (self.total + weight))
        self.n, self.total = self.n + 1, self.total + weight

    def average(self) -> dict[str, Tensor]:
        """Return the mean so far, in the dtypes of the first model.

        Raises:
            ValueError: if no model was added.
        """
        if not self._mean:
            raise ValueError("there is no average before the first model is added")
        return {name: tensor.to(self._dtypes[name], copy=True) for name, tensor in self._mean.items()}

    def average_without(self, model: nn.Module | Mapping[str, Tensor], weight: float = 1.0) -> dict[str, Tensor]:
        r"""Return the mean of all models but one, :math:`(C \theta_F - c \theta_i) / (C - c)`.

        Args:
            model: one of the models that were added.
            weight: the weight it was added with.

        Raises:
            ValueError: if fewer than two models were added, or names or shapes differ.
        """
        if self.n < 2:
            raise ValueError(f"leaving one out needs at least two models, got {self.n}")
        state = model.state_dict() if isinstance(model, nn.Module) else model
        self._require_alike(state)
        rest = self.total - weight
        return {
            name: ((self.total * mean - weight * state[name].to(mean)) / rest if mean.is_floating_point() else mean).to(
                self._dtypes[name]
            )
            for name, mean in self._mean.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Return everything that is needed to go on."""
        mean = {name: tensor.clone() for name, tensor in self._mean.items()}
        return {"n": self.n, "total": self.total, "mean": mean, "dtypes": dict(self._dtypes)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`."""
        self.n, self.total = state["n"], state["total"]
        self._mean = {name: tensor.clone() for name, tensor in state["mean"].items()}
        self._dtypes = dict(state["dtypes"])

    def _move(self, state: Mapping[str, Tensor], fraction: float) -> None:
        floating = [name for name, mean in self._mean.items() if mean.is_floating_point()]
        means = [self._mean[name] for name in floating]
        torch._foreach_lerp_(means, [state[name].detach().to(self._mean[name]) for name in floating], fraction)
        for name, mean in self._mean.items():
            if not mean.is_floating_point():
                torch.maximum(mean, state[name].to(mean), out=mean)

    def _require_alike(self, state: Mapping[str, Tensor]) -> None:
        names = sorted(set(self._mean) ^ set(state))
        if names:
            raise ValueError(f"model must have the names of the first; only one of them has {names[:5]}")
        for name, mean in self._mean.items():
            if mean.shape != state[name].shape:
                raise ValueError(
                    f"{name!r} must be {tuple(mean.shape)} as in the first model, got {tuple(state[name].shape)}"
                )


def _wide(tensor: Tensor) -> Tensor:
    dtype = torch.promote_types(tensor.dtype, torch.float32) if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to(dtype, copy=True)
