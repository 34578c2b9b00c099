"""Item embeddings that are also the output layer."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

_STD = 0.05  # with torch's default of 1 a tied output starts at losses of 30 to 55


class TiedItemEmbedding(nn.Module):
    """Embeds items and scores all items by their embeddings.

    Args:
        n_items: number of items.
        dim: width.
    """

    def __init__(self, n_items: int, dim: int) -> None:
        super().__init__()
        if n_items < 1 or dim < 1:
            raise ValueError(f"n_items and dim must be at least 1, got {n_items} and {dim}")
        self.weight = nn.Parameter(torch.randn(n_items, dim) * _STD)
        self.bias = nn.Parameter(torch.zeros(n_items))

    def embed(self, items: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time dim"]:
        """Return embeddings; zeros at negative numbers, which are padding."""
        found = nn.functional.embedding(items.clamp(min=0), self.weight)
        return found.masked_fill((items < 0)[..., None], 0.0)

    def score(self, states: Float[Tensor, "batch time dim"]) -> Float[Tensor, "batch time items"]:
        """Return a score of every item."""
        return nn.functional.linear(states, self.weight, self.bias)
