"""Attention: how large its logits are, and how much it still spreads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from poise.doctor.probes.probe import Probe

if TYPE_CHECKING:
    from poise.doctor.tap.tap import Tap


class AttentionProbe(Probe):
    """``attention_logit_max[m]`` over the visible entries, and ``attention_entropy[m]`` of the lowest head.

    The entropy of a query is divided by the logarithm of how many keys it may see, and averaged over the queries that
    see at least two: 1 is uniform attention, 0 a single token.

    References:
        Zhai et al., Stabilizing transformer training by preventing attention entropy collapse, 2023.
    """

    def attention(
        self,
        tap: Tap,
        logits: Float[Tensor, "heads query key"],
        visible: Bool[Tensor, "#heads query key"] | None,
    ) -> None:
        """Measure one sample."""
        if visible is None:
            visible = torch.ones_like(logits[:1], dtype=torch.bool)
        hidden = ~visible
        seen = logits.masked_fill(hidden, 0.0)
        low, high = torch.aminmax(seen)
        masked = logits.masked_fill(hidden, -torch.inf)
        # H = log Z - E[logit]
        entropy = torch.logsumexp(masked, -1) - (torch.softmax(masked, -1) * seen).sum(-1)
        keys = visible.sum(-1)
        several = (keys > 1).float()
        weights = several / (keys.clamp_min(2).log() * several.sum(-1, keepdim=True).clamp_min(1))
        # A query that sees nothing makes 0 x NaN.
        by_head = torch.where(weights > 0, entropy * weights, 0.0).sum(-1)
        tap.observe("attention_logit_max", torch.maximum(-low, high), tap.module)
        # Rounding may leave a collapsed attention a little below zero; heads in which no query sees two keys spread
        # as far as they can.
        spread = torch.where(several.any(-1), by_head, 1.0)
        tap.observe("attention_entropy", spread.amin().clamp_min(0.0), tap.module)
