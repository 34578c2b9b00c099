"""Embeddings multiplied by a constant, so that the residual stream does not begin small."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class ScaledEmbedding(nn.Embedding):
    r"""Embedding whose output is multiplied by a fixed factor.

    .. math:: x = s E[\text{token}], \qquad E_{ij} \sim N(0, \sigma^2), \qquad \sigma = \sqrt{2 / (5 d)}

    In a pre-norm Transformer the derivative of a norm is one over the standard deviation of its input: small embeddings
    amplify the gradients of the first blocks. ``"sqrt_dim"`` makes the standard deviation of the output 0.632 at any
    size, ``"unit"`` makes it 1. A head may share the weights; it then uses the unscaled ones.

    Args:
        num_embeddings: size of the vocabulary.
        embedding_dim: size of a vector.
        scale: ``"sqrt_dim"``, ``"unit"``, or the factor itself.
        padding_idx: token whose vector stays zero.
        device: where the weights live.
        dtype: of the weights.

    Attributes:
        scale: the factor.

    Raises:
        ValueError: if ``scale`` is an unknown name or not a positive number.

    References:
        Takase et al., "Spike No More: Stabilizing the Pre-training of Large Language Models", COLM 2025,
        arXiv:2312.16903.

    Example:
        >>> ScaledEmbedding(100, 16)(torch.tensor([3, 7])).shape
        torch.Size([2, 16])
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        scale: Literal["sqrt_dim", "unit"] | float = "sqrt_dim",
        padding_idx: int | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        self.std = math.sqrt(2 / (5 * embedding_dim))
        named = {"sqrt_dim": math.sqrt(embedding_dim), "unit": 1 / self.std}
        self.scale = named.get(scale, math.nan) if isinstance(scale, str) else float(scale)
        if not (self.scale > 0 and math.isfinite(self.scale)):
            raise ValueError(f"scale must be 'sqrt_dim', 'unit' or a positive number, got {scale!r}")
        super().__init__(num_embeddings, embedding_dim, padding_idx, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Initialise the vectors again."""
        nn.init.normal_(self.weight, std=self.std)
        self._fill_padding_idx_with_zero()

    def forward(self, input: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch dim"]:
        """Return the scaled vectors."""
        return super().forward(input) * self.scale

    def extra_repr(self) -> str:
        """Show the settings in the module's ``repr``."""
        return f"{super().extra_repr()}, scale={self.scale:.4g}"


class EmbeddingGradientShrink(nn.Module):
    r"""Pass vectors on unchanged and a fraction of their gradient back, :math:`\alpha x + (1 - \alpha) \mathrm{sg}(x)`.

    It calms the embeddings' own updates but leaves the residual stream as small as it was, so what amplifies
    the gradient of the first blocks remains.

    Args:
        alpha: the fraction, in (0, 1].

    Raises:
        ValueError: if ``alpha`` is outside (0, 1].

    References:
        Zeng et al., "GLM-130B", ICLR 2023, arXiv:2210.02414. Takase et al., 2025, arXiv:2312.16903.
    """

    def __init__(self, alpha: float = 0.1) -> None:
        super().__init__()
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha must lie in (0, 1], got {alpha!r}")
        self.alpha = alpha

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Return the input; its gradient is multiplied by ``alpha``."""
        return torch.lerp(x.detach(), x, self.alpha) if self.alpha < 1 else x

    def extra_repr(self) -> str:
        """Show the settings in the module's ``repr``."""
        return f"alpha={self.alpha}"
