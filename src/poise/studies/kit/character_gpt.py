"""A character GPT and its text: the smallest language model that several studies train."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from poise.data import load_text
from poise.nn import QKNorm

HEAD_DIM, CONTEXT = 16, 32


class Block(nn.Module):
    """Pre-norm attention and MLP, without biases."""

    def __init__(self, width: int, qk_norm: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6, bias=False) for _ in range(2))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        self.qk_norm = QKNorm(HEAD_DIM) if qk_norm else None

    def heads(self, x: Float[Tensor, "batch time width"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of shape (batch, heads, time, head_dim)."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, -1, HEAD_DIM)).permute(2, 0, 3, 1, 4)
        return (*self.qk_norm(q, k), v) if self.qk_norm is not None else (q, k, v)

    def forward(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
        """Add attention, then the MLP."""
        mixed = F.scaled_dot_product_attention(*self.heads(x), is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Positions(nn.Embedding):
    """Learned positions, added to a sequence that is as long as there are positions."""

    def forward(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
        """Add them."""
        return x + self.weight


class CharacterGPT(nn.Module):
    """Pre-norm blocks with learned positions, no biases and a head of its own.

    Args:
        width: size of the residual stream, a multiple of ``HEAD_DIM``.
        classes: size of the vocabulary.
        qk_norm: whether queries and keys are normalised.
        generator: of the initial weights.
        blocks: number of blocks.
    """

    def __init__(self, width: int, classes: int, qk_norm: bool, generator: torch.Generator, blocks: int = 2) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(classes, width), Positions(CONTEXT, width)
        self.blocks = nn.ModuleList(Block(width, qk_norm) for _ in range(blocks))
        self.norm = nn.LayerNorm(width, eps=1e-6, bias=False)
        self.head = nn.Linear(width, classes, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=width**-0.5, generator=generator)
            elif isinstance(module, nn.Linear):
                std = module.in_features**-0.5
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std, generator=generator)

    def forward(self, ids: Int64[Tensor, "batch time"]) -> Float[Tensor, "batch time classes"]:
        """Return the logits of the next character."""
        x = self.positions(self.tokens(ids))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def next_character_loss(model: nn.Module, ids: Int64[Tensor, "batch time"]) -> Float[Tensor, ""]:
    """Return the mean cross entropy of each character but the first, given those before it."""
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


@dataclass(frozen=True, slots=True)
class Corpus:
    """The text as ids: what is trained on, and 32 fixed windows of the last tenth."""

    train: Int64[Tensor, " characters"]
    windows: Int64[Tensor, "32 time"]
    classes: int


@cache
def corpus() -> Corpus:
    """Load the text once per process."""
    text = load_text()
    train, held_out = text.train_validation_split(0.1)
    starts = torch.linspace(0, len(held_out) - CONTEXT - 1, 32).long()
    return Corpus(train, held_out[starts[:, None] + torch.arange(CONTEXT + 1)], len(text.vocabulary))
