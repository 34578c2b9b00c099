"""Coin flips by 48 people who wrote down on which side each coin started and ended."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
from jaxtyping import Int64


@dataclass(frozen=True, slots=True, eq=False)
class CoinFlips:
    """Counts of flips for each person.

    Args:
        people: labels of the people, in ascending order of their fraction of same-side flips.
        hsame: started heads, ended heads.
        hdiff: started tails, ended heads.
        tsame: started tails, ended tails.
        tdiff: started heads, ended tails.
    """

    people: tuple[str, ...]
    hsame: Int64[np.ndarray, " people"]
    hdiff: Int64[np.ndarray, " people"]
    tsame: Int64[np.ndarray, " people"]
    tdiff: Int64[np.ndarray, " people"]

    @property
    def flips(self) -> Int64[np.ndarray, " people"]:
        """All flips of each person."""
        return self.hsame + self.hdiff + self.tsame + self.tdiff

    @property
    def same(self) -> Int64[np.ndarray, " people"]:
        """Flips that ended on the side they started on."""
        return self.hsame + self.tsame

    @property
    def heads(self) -> Int64[np.ndarray, " people"]:
        """Flips that ended heads."""
        return self.hsame + self.hdiff

    @property
    def started_heads(self) -> Int64[np.ndarray, " people"]:
        """Flips that started heads."""
        return self.hsame + self.tdiff

    def __len__(self) -> int:
        return len(self.people)


def load_coin_flips() -> CoinFlips:
    """Load the counts of 350,757 coin flips by 48 people.

    References:
        F. Bartoš et al. (2023), Fair coins tend to land on the same side they started: Evidence from 350,757 flips,
        arXiv:2310.04153.
    """
    text = (files("poise.data") / "coin_flips.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))
    counts = {name: np.array([int(row[name]) for row in rows]) for name in ("hsame", "hdiff", "tsame", "tdiff")}
    for column in counts.values():
        column.setflags(write=False)
    return CoinFlips(tuple(row["person"] for row in rows), **counts)
