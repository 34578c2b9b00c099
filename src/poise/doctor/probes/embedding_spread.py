"""How widely embeddings are spread over directions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from poise.doctor.probes.probe import Probe

if TYPE_CHECKING:
    from poise.doctor.tap.sink import Sink

_FEWEST = 8  # vectors, and features: fewer show nothing
_MOST = 512


class EmbeddingSpreadProbe(Probe):
    """``embedding_spread`` = sqrt(1 - ||mean of the unit vectors||^2) of vectors that the loss compares by direction.

    It is 1 where a batch points in all directions, and 0 where all vectors are one. Seen are vectors that are learned
    and given to ``F.normalize``, ``F.triplet_margin_loss`` or ``nn.CosineSimilarity``.

    References:
        Chen and He, Exploring simple Siamese representation learning, 2021 (the standard deviation of unit vectors).
        Wang and Isola, Understanding contrastive representation learning, 2020 (uniformity).
    """

    def forward(self, sink: Sink, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Measure the first argument of a cosine similarity."""
        if isinstance(module, nn.CosineSimilarity) and module.dim in (1, -1) and args:
            vectors = args[0]
            if isinstance(vectors, Tensor) and vectors.dim() == 2 and vectors.requires_grad:
                self.embeddings(sink, vectors.detach())

    def embeddings(self, sink: Sink, vectors: Float[Tensor, "batch feature"]) -> None:
        """Measure a batch of vectors."""
        if min(vectors.shape) < _FEWEST or not sink.is_first("embedding_spread", None):
            return
        unit = torch.nn.functional.normalize(vectors[:_MOST].float(), dim=1)
        sink.observe("embedding_spread", (1 - unit.mean(0).square().sum()).clamp_min(0).sqrt())
