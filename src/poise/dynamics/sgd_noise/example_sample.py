"""A random part of the examples of a data set, of any kind of batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from poise.curvature.loss.objective import Objective
from poise.dynamics.sgd_noise.per_example_factors import _rows

_PIECE = 32  # fewest examples of one batch that are evaluated together, where there are as many


def two_samples(
    objective: Objective, batches: Sequence[Any], size: int, generator: torch.Generator
) -> tuple[list[Any], list[Any]]:
    """Return two random samples of ``size`` examples without common ones; the second may be smaller, or empty.

    Pieces of up to 32 examples are drawn in turn from all batches, in random order.

    Args:
        objective: counts the examples of a batch.
        batches: all data.
        size: examples wanted; all of them are returned as they are.
        generator: of the draw.

    Raises:
        ValueError: if a batch has no tensor with its examples along the first dimension.
    """
    sizes = [objective.n_examples(batch) for batch in batches]
    if size >= sum(sizes):
        return list(batches), []
    pieces = _pieces(sizes, generator)
    first, rest = _cut(pieces, size)
    second, _ = _cut(rest, size)
    return _gathered(first, batches, sizes), _gathered(second, batches, sizes)


_Piece = tuple[int, Tensor]


def _pieces(sizes: Sequence[int], generator: torch.Generator) -> list[_Piece]:
    order = torch.randperm(len(sizes), generator=generator).tolist()
    split = {i: torch.randperm(sizes[i], generator=generator).split(_PIECE) for i in order}
    rounds = max(len(parts) for parts in split.values())
    return [(i, split[i][k]) for k in range(rounds) for i in order if k < len(split[i])]


def _cut(pieces: Sequence[_Piece], size: int) -> tuple[list[_Piece], list[_Piece]]:
    """Return the first ``size`` examples of the pieces, and the others."""
    taken: list[_Piece] = []
    for k, (i, rows) in enumerate(pieces):
        if len(rows) >= size:
            rest = [(i, rows[size:])] if len(rows) > size else []
            return [*taken, (i, rows[:size])], [*rest, *pieces[k + 1 :]]
        taken.append((i, rows))
        size -= len(rows)
    return taken, []


def _gathered(pieces: Sequence[_Piece], batches: Sequence[Any], sizes: Sequence[int]) -> list[Any]:
    rows: dict[int, list[Tensor]] = {}
    for i, part in pieces:
        rows.setdefault(i, []).append(part)
    return [_rows(batches[i], torch.cat(parts).sort().values, sizes[i]) for i, parts in rows.items()]
