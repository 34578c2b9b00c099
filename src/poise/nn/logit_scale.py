"""Force attention logits to a chosen scale: the experiment that shows whether large logits alone do harm."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor


def transplant_logit_scale(x: Float[Tensor, "*batch head_dim"], kappa: float) -> Float[Tensor, "*batch head_dim"]:
    r"""Rescale queries or keys so that attention logits reach :math:`\kappa \sqrt{d_h}` and no more.

    .. math:: g(z) = \sqrt{\kappa}\, z / \sqrt{\mathrm{mean}_i\, z_i^2}

    With both queries and keys passed through :math:`g`, the logit of two parallel vectors is exactly
    :math:`\kappa \sqrt{d_h}`. A small model under the logit scale of a large one shows whether that scale
    breaks training by itself (in the paper: worse near 1e3, worse than bigrams at 1e4).

    Args:
        x: queries or keys; no row may be all zeros.
        kappa: the logit scale, positive.

    Raises:
        ValueError: if ``kappa`` is not positive and finite.

    References:
        Wortsman et al., ICLR 2024, arXiv:2309.14322.
    """
    if not (math.isfinite(kappa) and kappa > 0):
        raise ValueError(f"kappa must be positive and finite, got {kappa!r}")
    return x * (kappa / x.square().mean(-1, keepdim=True)).sqrt()
