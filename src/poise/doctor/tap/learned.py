"""Hooks of what a loss compares by direction, and of standard deviations that are learned."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal

from poise.doctor.tap.forward import without_autocast
from poise.doctor.tap.function_hook import FunctionHook
from poise.doctor.tap.guard import guarded
from poise.doctor.tap.plain import is_compiling, is_plain
from poise.doctor.tap.state import TapState


class LearnedHooks:
    """On sampled steps lets probes see embeddings that are normalised, and the scales of Gaussian likelihoods.

    Args:
        state: of the tap.
    """

    def __init__(self, state: TapState) -> None:
        self.state = state

    def functions(self) -> list[FunctionHook]:
        """Return the hooks that stay for the whole run."""
        return [
            FunctionHook(F.normalize, before=self._normalized),
            FunctionHook(F.triplet_margin_loss, before=self._triplet),
            FunctionHook(Normal.log_prob, before=self._log_prob),
            FunctionHook(F.gaussian_nll_loss, before=self._gaussian_nll),
        ]

    def _normalized(self, vectors: Any, p: float, dim: Any, *_: Any) -> None:
        if self._is_learned(vectors) and vectors.dim() == 2 and dim in (1, -1) and not vectors.is_leaf:
            self._embeddings(vectors)

    def _triplet(self, anchor: Any, *_: Any) -> None:
        if self._is_learned(anchor) and anchor.dim() == 2 and not anchor.is_leaf:
            self._embeddings(anchor)

    def _log_prob(self, normal: Any, value: Any, *_: Any) -> None:
        if self._is_learned(normal.scale) and is_plain(value) and is_plain(normal.loc):
            self._scale(normal.scale, value, normal.loc)

    def _gaussian_nll(self, prediction: Any, target: Any, variance: Any, *_: Any) -> None:
        if self._is_learned(variance) and is_plain(target) and is_plain(prediction):
            self._scale(variance, target, prediction, is_variance=True)

    def _is_learned(self, value: Any) -> bool:
        state = self.state
        if not state.sampling or state.busy or is_compiling() or not torch.is_grad_enabled():
            return False
        return is_plain(value) and value.requires_grad and value.numel() > 0

    @guarded
    def _embeddings(self, vectors: Tensor) -> None:
        if self.state.sink.is_first("embeddings", None):
            with torch.no_grad(), without_autocast():
                self.state.call_probes("embeddings", vectors.detach())

    @guarded
    def _scale(self, scale: Tensor, value: Tensor, mean: Tensor, is_variance: bool = False) -> None:
        if self.state.sink.is_first("learned_scale", None):
            with torch.no_grad(), without_autocast():
                deviation, residual = scale.detach().float(), (value.detach() - mean.detach()).float()
                self.state.call_probes("learned_scale", deviation.sqrt() if is_variance else deviation, residual)
