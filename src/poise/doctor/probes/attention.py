"""Attention: how large its logits are, and how widely it is spread."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from poise.doctor.probes.probe import Probe

if TYPE_CHECKING:
    from poise.doctor.tap.sink import Sink


_HIDDEN = -1e30  # the logit of what may not be seen: finite, so that nothing becomes NaN


class AttentionProbe(Probe):
    """``attention_logit_max[m]`` over the visible entries; ``attention_entropy[m]`` of the lowest head.

    Also ``attention_entropy_median[m]``, of the median head.

    The entropy of a query is divided by the logarithm of how many keys it may see, and averaged over the queries that
    see at least two: 1 is uniform attention, 0 a single token.

    References:
        Zhai et al., Stabilizing transformer training by preventing attention entropy collapse, 2023.
    """

    def attention(
        self,
        sink: Sink,
        module: nn.Module | None,
        logits: Float[Tensor, "heads query key"],
        visible: Bool[Tensor, "#heads query key"] | None,
    ) -> None:
        """Measure one sample."""
        magnitudes = logits.abs()
        keys = torch.full(logits.shape[1:2], logits.shape[-1], device=logits.device).unsqueeze(0)
        if visible is not None:
            hidden = ~visible
            magnitudes.masked_fill_(hidden, 0.0)
            logits = logits.masked_fill(hidden, _HIDDEN)
            keys = visible.sum(-1)
        sink.observe("attention_logit_max", magnitudes.amax(), module)
        logits = logits.clamp_min(_HIDDEN)  # -inf of an additive mask: 0 log 0 is 0
        entropy = -(torch.softmax(logits, -1) * torch.log_softmax(logits, -1)).sum(-1)
        several = (keys > 1).float()
        weights = several / (keys.clamp_min(2).log() * several.sum(-1, keepdim=True).clamp_min(1))
        by_head = (entropy * weights).sum(-1)
        # Rounding may leave a collapsed attention a little below zero; heads in which no query sees two keys spread
        # as far as they can.
        spread = torch.where(several.any(-1), by_head, 1.0)
        sink.observe("attention_entropy", spread.amin().clamp_min(0.0), module)
        sink.observe("attention_entropy_median", spread.reshape(-1).median().clamp_min(0.0), module)
