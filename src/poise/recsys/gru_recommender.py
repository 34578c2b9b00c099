"""A recurrent recommender of the next item."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn

from poise.recsys.item_embedding import TiedItemEmbedding


class GRURecommender(nn.Module):
    """Scores every item at every position of sequences of items, by a gated recurrent network.

    Args:
        n_items: number of items.
        dim: width of embeddings and states; 64 by default.
        dropout: on embeddings and states.

    References:
        Hidasi, Karatzoglou, Baltrunas, Tikk, "Session-based recommendations with recurrent neural networks", ICLR
        2016, arXiv:1511.06939.

    Example:
        >>> import torch
        >>> GRURecommender(100)(torch.tensor([[3, 7, 9]])).shape
        torch.Size([1, 3, 100])
    """

    def __init__(self, n_items: int, dim: int = 64, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.items = TiedItemEmbedding(n_items, dim)
        self.rnn = nn.GRU(dim, dim, batch_first=True)
        self.dropout = nn.Dropout(dropout)

    def forward(self, items: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time items"]:
        """Return scores; negative numbers in ``items`` are padding."""
        states, _ = self.rnn(self.dropout(self.items.embed(items)))
        return self.items.score(self.dropout(states))
