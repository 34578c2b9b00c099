"""A memory in which every sample of a stream has the same chance to be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class ReservoirBuffer:
    r"""Keep a uniform random sample of all that was seen, without knowing how much will come.

    The :math:`n`-th sample replaces a random one with probability ``size`` / :math:`n`, so that at any time each sample
    seen so far is in the memory with the same probability.

    Args:
        size: most samples kept.
        seed: of what is replaced and what is drawn.

    Attributes:
        seen: samples added so far.

    Raises:
        ValueError: if ``size`` is below 1.

    References:
        Vitter, "Random sampling with a reservoir", ACM TOMS 1985.

    Example:
        >>> memory = ReservoirBuffer(200)
        >>> for x, y in stream:
        ...     old_x, old_y = memory.sample(len(x)) if len(memory) else (x[:0], y[:0])
        ...     train_step(torch.cat([x, old_x]), torch.cat([y, old_y]))
        ...     memory.add(x, y)
    """

    def __init__(self, size: int, *, seed: int = 0) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self.size, self.seen = size, 0
        self._generator = torch.Generator().manual_seed(seed)
        self._columns: tuple[Tensor, ...] = ()
        self._filled = 0

    def __len__(self) -> int:
        return self._filled

    def add(self, *columns: Tensor) -> None:
        """Take in samples.

        Args:
            columns: inputs, targets and whatever else belongs to a sample (its task, its stored logits), of one length.

        Raises:
            ValueError: if lengths differ, or the columns are not those of the samples before.
        """
        n = _length(columns)
        if not self._columns:
            self._columns = tuple(c.new_empty((self.size, *c.shape[1:])).detach() for c in columns)
        elif len(columns) != len(self._columns):
            raise ValueError(f"columns must be the {len(self._columns)} of the samples before, got {len(columns)}")
        order = torch.arange(self.seen, self.seen + n)
        draw = (torch.rand(n, generator=self._generator, dtype=torch.float64) * (order + 1)).long()
        slots = torch.where(order < self.size, order, draw)
        # Of two samples for one slot the later one stays: the last occurrence of each slot is written.
        last = {int(slot): i for i, slot in enumerate(slots.tolist()) if slot < self.size}
        where, which = torch.tensor(list(last), dtype=torch.long), torch.tensor(list(last.values()), dtype=torch.long)
        for kept, new in zip(self._columns, columns, strict=True):
            kept[where.to(kept.device)] = new.detach()[which.to(new.device)].to(kept)
        self.seen += n
        self._filled = min(self.size, self.seen)

    def sample(self, n: int) -> tuple[Tensor, ...]:
        """Return ``n`` random samples, column by column; distinct ones where the memory holds so many.

        Raises:
            ValueError: if the memory is empty or ``n`` is below 1.
        """
        return tuple(column[pick.to(column.device)] for pick in [self._pick(n)] for column in self._columns)

    def all(self) -> tuple[Tensor, ...]:
        """Return all samples, column by column."""
        return tuple(column[: self._filled] for column in self._columns)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that is needed to go on, the samples included."""
        columns = [column.clone() for column in self._columns]
        return {"columns": columns, "seen": self.seen, "generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`.

        Raises:
            ValueError: if it is of a memory of another size.
        """
        columns = tuple(column.clone() for column in state["columns"])
        if columns and len(columns[0]) != self.size:
            raise ValueError(f"state must be of a memory of size {self.size}, got one of {len(columns[0])}")
        self._columns, self.seen = columns, state["seen"]
        self._filled = min(self.size, self.seen)
        self._generator.set_state(state["generator"])

    def _pick(self, n: int) -> Tensor:
        if n < 1 or not len(self):
            raise ValueError(f"n must be at least 1 and the memory not empty, got {n} and {len(self)} samples")
        if n <= self._filled:
            return torch.randperm(self._filled, generator=self._generator)[:n]
        return torch.randint(self._filled, (n,), generator=self._generator)


def _length(columns: tuple[Tensor, ...]) -> int:
    lengths = [len(column) for column in columns]
    if not lengths or len(set(lengths)) > 1:
        raise ValueError(f"columns must be at least one and of one length, got {lengths}")
    return lengths[0]
