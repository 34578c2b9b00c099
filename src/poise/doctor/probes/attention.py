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
        masked = logits.masked_fill(~visible, -torch.inf)
        largest = torch.where(visible, logits.abs(), 0.0).amax()
        log_p = masked - torch.logsumexp(masked, dim=-1, keepdim=True)
        entropy = -torch.where(visible, log_p.exp() * log_p, 0.0).sum(-1)
        keys = visible.sum(-1).expand(entropy.shape)
        several = keys > 1
        relative = torch.where(several, entropy / keys.clamp_min(2).log(), 0.0)
        by_head = relative.sum(-1) / several.sum(-1).clamp_min(1)
        tap.observe("attention_logit_max", largest, tap.module)
        tap.observe("attention_entropy", torch.where(several.any(-1), by_head, 1.0).amin(), tap.module)
