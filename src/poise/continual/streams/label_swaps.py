"""A stream in which two classes exchange their labels now and then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor


class LabelSwapStream:
    """Batches of samples whose labels drift: every so many samples two random classes swap their labels, from then on.

    Args:
        x: inputs.
        y: class numbers from 0.
        every: samples between two swaps; ``None`` for no swap. A sequence of such numbers takes turns, one an epoch, so
            that the rate of the drift itself changes with the "seasons".
        batch: samples a batch.
        epochs: how often the data are gone through, each time in another order.
        seed: of orders and swaps.

    Attributes:
        swaps: pairs of classes that were swapped so far, in order, each with the number of samples seen before.

    Raises:
        ValueError: if there are fewer than 2 classes, or ``batch``, ``epochs`` or ``every`` is below 1.

    References:
        Man, Damasio and Neven, "Need is all you need", 2022, arXiv:2205.08645.
    """

    def __init__(
        self,
        x: Float[Tensor, "samples ..."],
        y: Int64[Tensor, " samples"],
        every: int | Sequence[int | None] | None,
        *,
        batch: int = 10,
        epochs: int = 1,
        seed: int = 0,
    ) -> None:
        self._seasons: tuple[int | None, ...] = (every,) if every is None or isinstance(every, int) else tuple(every)
        self._classes = int(y.max()) + 1 if len(y) else 0
        if len(y.unique()) < 2:
            raise ValueError(f"y must hold at least 2 classes, got {y.unique().tolist()}")
        if batch < 1 or epochs < 1 or any(season is not None and season < 1 for season in self._seasons):
            raise ValueError(f"batch, epochs and every must be at least 1, got {batch}, {epochs} and {every}")
        self._x, self._y, self._batch, self._epochs = x, y, batch, epochs
        self._rng = np.random.default_rng(seed)
        self._label = torch.arange(self._classes)
        self.swaps: list[tuple[int, int, int]] = []

    @property
    def labels(self) -> Int64[Tensor, " classes"]:
        """What each class is called at present."""
        return self._label.clone()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        seen = 0
        for epoch in range(self._epochs):
            every = self._seasons[epoch % len(self._seasons)]
            order = torch.from_numpy(self._rng.permutation(len(self._y)))
            due = every
            for start in range(0, len(order), self._batch):
                pick = order[start : start + self._batch]
                yield self._x[pick], self._label[self._y[pick]]
                seen += len(pick)
                while every is not None and due is not None and start + len(pick) >= due:
                    self._swap(seen)
                    due += every

    def _swap(self, seen: int) -> None:
        a, b = (int(c) for c in self._rng.choice(self._classes, 2, replace=False))
        first, second = self._label == a, self._label == b
        self._label[first], self._label[second] = b, a
        self.swaps.append((seen, a, b))
