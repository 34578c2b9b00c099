"""A memory with as many samples of each class as of every other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from poise.continual.replay.reservoir import ReservoirBuffer, _length


class ClassBalancedBuffer:
    """Keep a uniform random sample of every class; a new class takes room from all others.

    With ``k`` classes seen, each has room for ``size // k`` samples.

    Args:
        size: most samples kept in total.
        seed: of what is replaced and what is drawn.

    Raises:
        ValueError: if ``size`` is below 1.

    Example:
        >>> memory = ClassBalancedBuffer(200)
        >>> memory.add(x, y)
        >>> old_x, old_y = memory.sample(64)
    """

    def __init__(self, size: int, *, seed: int = 0) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self.size, self.seed = size, seed
        self._classes: dict[int, ReservoirBuffer] = {}
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return sum(map(len, self._classes.values()))

    @property
    def counts(self) -> dict[int, int]:
        """How many samples of each class are kept."""
        return {c: len(buffer) for c, buffer in sorted(self._classes.items())}

    def add(self, x: Tensor, y: Tensor, *columns: Tensor) -> None:
        """Take in samples.

        Args:
            x: inputs.
            y: class numbers.
            columns: whatever else belongs to a sample.

        Raises:
            ValueError: if lengths differ, or there are more classes than ``size``.
        """
        _length((x, y, *columns))
        new = [int(c) for c in y.unique() if int(c) not in self._classes]
        if len(self._classes) + len(new) > self.size:
            raise ValueError(f"size must be at least the number of classes, {len(self._classes) + len(new)}")
        if new:
            self._make_room(new)
        for c in y.unique().tolist():
            of_class = y == c
            self._classes[int(c)].add(*(column[of_class] for column in (x, y, *columns)))

    def sample(self, n: int, balanced: bool = True) -> tuple[Tensor, ...]:
        """Return ``n`` random samples, column by column.

        Args:
            n: how many.
            balanced: draw a class for each first, each with the same probability.

        Raises:
            ValueError: if the memory is empty or ``n`` is below 1.
        """
        if n < 1 or not len(self):
            raise ValueError(f"n must be at least 1 and the memory not empty, got {n} and {len(self)} samples")
        columns = self.all()
        if not balanced:
            some = n <= len(self)
            pick = torch.randperm(len(self), generator=self._generator)[:n] if some else self._draw(len(self), n)
            return tuple(column[pick.to(column.device)] for column in columns)
        sizes = torch.tensor([len(buffer) for buffer in self._classes.values()])
        chosen = self._draw(len(sizes), n)
        within = (torch.rand(n, generator=self._generator, dtype=torch.float64) * sizes[chosen]).long()
        pick = (sizes.cumsum(0) - sizes)[chosen] + within
        return tuple(column[pick.to(column.device)] for column in columns)

    def all(self) -> tuple[Tensor, ...]:
        """Return all samples, column by column, class after class."""
        parts = [buffer.all() for buffer in self._classes.values()]
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Return everything that is needed to go on, the samples included."""
        classes = {c: (buffer.size, buffer.state_dict()) for c, buffer in self._classes.items()}
        return {"size": self.size, "classes": classes, "generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`.

        Raises:
            ValueError: if it is of a memory of another size.
        """
        if state["size"] != self.size:
            raise ValueError(f"state must be of a memory of size {self.size}, got one of {state['size']}")
        self._classes = {}
        for c, (size, own) in state["classes"].items():
            self._classes[c] = ReservoirBuffer(size)
            self._classes[c].load_state_dict(own)
        self._generator.set_state(state["generator"])

    def _draw(self, high: int, n: int) -> Tensor:
        return torch.randint(high, (n,), generator=self._generator)

    def _make_room(self, new: list[int]) -> None:
        room = self.size // (len(self._classes) + len(new))
        for c, buffer in self._classes.items():
            smaller = ReservoirBuffer(room, seed=_seed(self.seed, c, room))
            if len(buffer):  # a random part of a uniform sample is a uniform sample
                smaller.add(*buffer.sample(min(room, len(buffer))))
                smaller.seen = buffer.seen
            self._classes[c] = smaller
        self._classes |= {c: ReservoirBuffer(room, seed=_seed(self.seed, c, room)) for c in new}


def _seed(seed: int, c: int, room: int) -> int:
    return hash((seed, c, room)) % 2**31
