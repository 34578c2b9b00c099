"""Overlap of the rankings of two score matrices at every depth, with ties in expectation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from poise.recsys.rank_weights import depth_weights, entry_weights
from poise.recsys.ranks import tie_groups


@dataclass(frozen=True, slots=True)
class Ranking:
    """Ranked lists in which tied items stand in a group.

    Args:
        first: first rank, from 1, of the group of each item.
        size: number of items in that group; 1 without a tie.
    """

    first: Int[np.ndarray, "lists items"]
    size: Int[np.ndarray, "lists items"]

    @classmethod
    def of(cls, scores: Float[np.ndarray, "lists items"]) -> Ranking:
        """Rank the items of each list by score, the highest first."""
        return cls(*tie_groups(scores))

    def take(self, lists: Bool[np.ndarray, " lists"]) -> Ranking:
        """Return some of the lists."""
        return Ranking(self.first[lists], self.size[lists])

    def membership(self, depth: int) -> Float[np.ndarray, "lists items"]:
        """Return the probability that an item is among the first ``depth`` if ties are broken at random."""
        return np.clip((depth + 1 - self.first) / self.size, 0.0, 1.0)


def weighted_overlap(a: Ranking, b: Ranking, p: float) -> Float[np.ndarray, " lists"]:
    r"""Return :math:`\sum_d w_d X_d / d` of each pair of lists, all items ranked in both.

    Without ties this is the sum over items of the weight of the depth at which both lists hold the item. With ties the
    overlap :math:`X_d` is its expectation when ties are broken at random, divided by the geometric mean of the
    overlaps of each list with itself, so that a list agrees with itself entirely and the order of the items in memory
    does not matter.

    Args:
        a: rankings of the first score matrix.
        b: rankings of the second, of the same shape.
        p: persistence; 1 weights all depths alike.

    References:
        Corsi, Urbano, "The treatment of ties in rank-biased overlap", SIGIR 2024.
    """
    items = a.first.shape[1]
    overlap = entry_weights(items, p)[np.maximum(a.first, b.first) - 1].sum(1)
    tied = np.any((a.size > 1) | (b.size > 1), axis=1)
    if tied.any():
        a, b = a.take(tied), b.take(tied)
        shared = expected_overlap(a, b)
        norm = np.sqrt(expected_overlap(a, a) * expected_overlap(b, b))
        agreement = np.divide(shared, norm, out=np.zeros_like(shared), where=norm > 0)
        overlap[tied] = agreement @ depth_weights(items, p)
    return overlap


def expected_overlap(a: Ranking, b: Ranking) -> Float[np.ndarray, "lists depths"]:
    r"""Return the sum over items of the product of their memberships in both lists, for every depth.

    The membership of an item grows linearly over its group of ties and is 1 after it, so its product over two lists is
    a quadratic between the ends of the groups: its coefficients are added where they begin and summed up over depth.

    Args:
        a: rankings of one score matrix.
        b: rankings of the other.
    """
    lists, items = a.first.shape
    row = np.arange(lists)[:, None]
    change = np.zeros((3, lists, items + 2))  # changes of the coefficients of 1, d, d^2 at each depth
    end_a, end_b = a.first + a.size, b.first + b.size
    start, middle, end = np.maximum(a.first, b.first), np.minimum(end_a, end_b), np.maximum(end_a, end_b)
    middle = np.maximum(start, middle)
    # (d + 1 - first) / size = slope * d + offset
    slope_a, slope_b = 1 / a.size, 1 / b.size
    offset_a, offset_b = (1 - a.first) * slope_a, (1 - b.first) * slope_b
    both = np.stack([offset_a * offset_b, slope_a * offset_b + slope_b * offset_a, slope_a * slope_b])
    later = end_a >= end_b  # the list whose group ends later still grows when the other is at 1
    one = np.stack([np.where(later, offset_a, offset_b), np.where(later, slope_a, slope_b), np.zeros(a.first.shape)])
    whole = np.zeros_like(one)
    whole[0] = 1.0
    for coefficient in range(3):
        np.add.at(change[coefficient], (row, start), both[coefficient])
        np.add.at(change[coefficient], (row, middle), (one - both)[coefficient])
        np.add.at(change[coefficient], (row, end), (whole - one)[coefficient])
    constant, linear, quadratic = change.cumsum(2)[:, :, 1 : items + 1]
    depth = np.arange(1, items + 1)
    return np.clip(constant + linear * depth + quadratic * depth**2, 0.0, depth)
