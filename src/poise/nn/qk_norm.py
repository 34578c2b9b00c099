"""qk-norm: normalise queries and keys, so that attention logits cannot grow without bound."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Kind = Literal["layer", "rms"]


class QKNorm(nn.Module):
    r"""Normalise each head's queries and keys before their dot product.

    .. math:: q \leftarrow g_q \odot \mathrm{norm}(q), \qquad k \leftarrow g_k \odot \mathrm{norm}(k)

    A normalised head vector is no longer than :math:`\sqrt{d_h}`, so an attention logit
    :math:`\langle q, k\rangle / \sqrt{d_h}` stays within :math:`\max_i |g_{q,i} g_{k,i}| \sqrt{d_h}` whatever
    the projections grow to. Without it the logit is quadratic in the weights, and a high learning rate makes
    it run away. The gains are shared by all heads of the layer (``2 * head_dim`` parameters).

    Args:
        head_dim: size of one head, at least 2 (the norm of a single number is a constant).
        kind: ``"layer"`` subtracts the mean and divides by the standard deviation, ``"rms"`` divides by the
            root mean square only. Neither has a bias.
        eps: added to the variance.

    Raises:
        ValueError: if ``head_dim`` is below 2, ``kind`` is unknown or ``eps`` is not positive.

    References:
        Wortsman et al., "Small-scale proxies for large-scale Transformer training instabilities", ICLR 2024,
        arXiv:2309.14322. Dehghani et al., "Scaling Vision Transformers to 22 Billion Parameters", ICML 2023,
        arXiv:2302.05442.

    Example:
        >>> norm = QKNorm(head_dim=16)
        >>> q, k = torch.randn(2, 8, 4, 32, 16)  # batch 8, 4 heads, 32 tokens
        >>> q, k = norm(q, k)
    """

    def __init__(self, head_dim: int, kind: Kind = "layer", eps: float = 1e-6) -> None:
        super().__init__()
        if head_dim < 2:
            raise ValueError(f"head_dim must be at least 2 (one number normalises to a constant), got {head_dim!r}")
        if kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {get_args(Kind)}, got {kind!r}")
        if not eps > 0:
            raise ValueError(f"eps must be positive, got {eps!r}")
        self.head_dim, self.kind, self.eps = head_dim, kind, eps
        self.query_gain = nn.Parameter(torch.ones(head_dim))
        self.key_gain = nn.Parameter(torch.ones(head_dim))

    def forward(
        self, query: Float[Tensor, "*batch time head_dim"], key: Float[Tensor, "*batch source head_dim"]
    ) -> tuple[Float[Tensor, "*batch time head_dim"], Float[Tensor, "*batch source head_dim"]]:
        """Return the normalised queries and keys, each in the dtype it came in.

        Raises:
            ValueError: if ``query`` or ``key`` does not end in ``head_dim``.
        """
        return self._normalise(query, self.query_gain, "query"), self._normalise(key, self.key_gain, "key")

    def logit_bound(self) -> float:
        """Return the largest |attention logit| that the present gains allow (scale ``1 / sqrt(head_dim)``)."""
        gain = (self.query_gain.detach() * self.key_gain.detach()).abs().max().item()
        return gain * math.sqrt(self.head_dim)

    def extra_repr(self) -> str:
        """Show the settings in the module's ``repr``."""
        return f"head_dim={self.head_dim}, kind={self.kind!r}, eps={self.eps}"

    def _normalise(self, x: Tensor, gain: Tensor, name: str) -> Tensor:
        if x.shape[-1] != self.head_dim:
            raise ValueError(f"{name} must end in head_dim={self.head_dim}, got shape {tuple(x.shape)}")
        # The kernels accumulate in float32 for half types. Under autocast they may return float32: cast back, or
        # attention would refuse q and k that differ from v.
        gain, shape = gain.to(x.dtype), (self.head_dim,)
        if self.kind == "layer":
            return F.layer_norm(x, shape, gain, None, self.eps).to(x.dtype)
        return F.rms_norm(x, shape, gain, self.eps).to(x.dtype)
