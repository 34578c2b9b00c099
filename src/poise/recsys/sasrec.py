"""A recommender of the next item by self-attention."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from poise.recsys.item_embedding import TiedItemEmbedding


class SASRec(nn.Module):
    """Scores every item at every position of sequences of items, by causal self-attention.

    Args:
        n_items: number of items.
        dim: width; 64 by default.
        blocks: number of blocks.
        heads: attention heads of a block; must divide ``dim``.
        max_length: longest sequence.
        dropout: on embeddings and in the blocks; 0.2 by default.

    Raises:
        ValueError: if ``heads`` does not divide ``dim``.

    References:
        Kang, McAuley, "Self-attentive sequential recommendation", ICDM 2018, arXiv:1808.09781.

    Example:
        >>> import torch
        >>> SASRec(100)(torch.tensor([[3, 7, 9]])).shape
        torch.Size([1, 3, 100])
    """

    def __init__(
        self,
        n_items: int,
        dim: int = 64,
        *,
        blocks: int = 2,
        heads: int = 2,
        max_length: int = 50,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads must divide dim, got {heads} and {dim}")
        self.items = TiedItemEmbedding(n_items, dim)
        self.positions = nn.Parameter(torch.randn(max_length, dim) * 0.05)
        self.blocks = nn.ModuleList(_Block(dim, heads, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, items: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time items"]:
        """Return scores; negative numbers in ``items`` are padding, which no position attends to.

        Raises:
            ValueError: if a sequence is longer than ``max_length``.
        """
        time = items.shape[1]
        if time > len(self.positions):
            raise ValueError(f"items must have at most {len(self.positions)} positions (max_length), got {time}")
        x = self.dropout(self.items.embed(items) + self.positions[-time:])
        visible = torch.ones(time, time, dtype=torch.bool, device=items.device).tril() & (items >= 0)[:, None, :]
        # A padded position sees itself, so that no row of the attention is empty.
        visible = visible | torch.eye(time, dtype=torch.bool, device=items.device)
        for block in self.blocks:
            x = block(x, visible[:, None])
        return self.items.score(self.norm(x))


class _Block(nn.Module):
    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.hidden, self.back = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "batch time dim"], visible: Tensor) -> Float[Tensor, "batch time dim"]:
        batch, time, dim = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, time, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        x = x + self.dropout(self.out(mixed.transpose(1, 2).reshape(batch, time, dim)))
        return x + self.dropout(self.back(F.relu(self.hidden(self.norm2(x)))))
