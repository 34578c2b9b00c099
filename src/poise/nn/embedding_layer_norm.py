"""Layer normalisation right after the embeddings, so that the residual stream begins at standard deviation one."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class EmbeddingLayerNorm(nn.Module):
    r"""Embedding followed by layer normalisation with a learned gain, :math:`x = \mathrm{LN}(E[\text{token}])`.

    Args:
        num_embeddings: size of the vocabulary.
        embedding_dim: size of a vector, at least 2.
        padding_idx: token whose vector stays zero.
        eps: added to the variance.
        device: where parameters live.
        dtype: dtype of the parameters.

    Attributes:
        embedding: the ``nn.Embedding``; a head may share its weights.
        norm: the ``nn.LayerNorm``.

    Raises:
        ValueError: if ``embedding_dim`` is below 2.

    References:
        Takase et al., 2025, arXiv:2312.16903. Le Scao et al., "What Language Model to Train if You Have One Million
        GPU Hours?", 2022, arXiv:2210.15424.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        eps: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if embedding_dim < 2:
            raise ValueError(f"embedding_dim must be at least 2 (one number has no variance), got {embedding_dim!r}")
        self.embedding = nn.Embedding(num_embeddings, embedding_dim, padding_idx, device=device, dtype=dtype)
        self.norm = nn.LayerNorm(embedding_dim, eps, device=device, dtype=dtype)
        with torch.no_grad():
            self.embedding.weight.mul_((2 / (5 * embedding_dim)) ** 0.5)  # torch draws from N(0, 1)

    @property
    def weight(self) -> Tensor:
        """The embedding's weights, under the name they have in ``nn.Embedding``."""
        return self.embedding.weight

    def forward(self, input: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch dim"]:
        """Return the normalised vectors."""
        return self.norm(self.embedding(input))
