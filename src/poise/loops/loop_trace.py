"""What happened round by round in a loop whose output becomes its input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from poise.report import Figure, Table, line_chart

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, eq=False)
class LoopTrace:
    """The record of a loop: what it was trained on, and what came out, round by round.

    Attributes:
        statistics: by name, one number per round (round 0 is before any output was fed back); NaN where it was
            undefined.
        provenance: number of rows by source (``"human"``, ``"model"``), one per round.
        bound: largest absolute drift that theory allows at each round; None where there is no theory.
        settings: of the loop, of JSON types.
        reasons: why the loop ended early, if it did.
    """

    statistics: Mapping[str, Float[np.ndarray, " rounds"]]
    provenance: Mapping[str, Float[np.ndarray, " rounds"]] = field(default_factory=dict)
    bound: Float[np.ndarray, " rounds"] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    reasons: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.statistics:
            raise ValueError("statistics must hold at least one series, got none")
        columns = {**self.statistics, **self.provenance}
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"statistics and provenance must have one number per round each, got lengths {lengths}")

    def __len__(self) -> int:
        return len(next(iter(self.statistics.values())))

    def drift(self, name: str) -> Float[np.ndarray, " rounds"]:
        """Return by how much a statistic differs from round 0.

        Args:
            name: of a statistic.
        """
        values = self.statistics[name]
        return values - values[0]

    def factor(self, name: str, limit: float | None = None, noise: float = 0.0) -> float:
        r"""Return the factor by which the distance to a limit changes per round: below 1 the loop contracts.

        It is :math:`\exp` of the slope of :math:`\log|s_t - s_\infty|` over the rounds whose distance is above the
        noise.

        Args:
            name: of a statistic.
            limit: where it goes; its last value by default (which then is left out).
            noise: distance below which a round tells nothing.

        Returns:
            The factor, or NaN if fewer than three rounds are above the noise.
        """
        values = self.statistics[name]
        last = values[-1] if limit is None else limit
        distance = np.abs(values - last)[: None if limit is not None else -1]
        there = distance > max(noise, np.finfo(float).tiny)
        if there.sum() < 3:
            return float("nan")
        rounds = np.arange(len(distance))[there]
        return float(np.exp(np.polyfit(rounds, np.log(distance[there]), 1)[0]))

    def to_frame(self) -> pd.DataFrame:
        """Return one row per round as a pandas data frame.

        Raises:
            ImportError: if pandas is missing.
        """
        import pandas as pd

        bound = {} if self.bound is None else {"bound": self.bound}
        return pd.DataFrame({"round": np.arange(len(self)), **self.statistics, **self.provenance, **bound})

    def table(self, title: str) -> Table:
        """Return the rounds as a table of a report.

        Args:
            title: of the table.
        """
        columns: dict[str, Any] = {"round": np.arange(len(self)), **self.statistics, **self.provenance}
        if self.bound is not None:
            columns["bound"] = self.bound
        rows = [[values[i] for values in columns.values()] for i in range(len(self))]
        return Table(title, list(columns), rows)

    def figure(self, title: str, name: str, y_title: str) -> Figure:
        """Return a statistic over the rounds, within its bound where there is one.

        Args:
            title: of the figure.
            name: of the statistic.
            y_title: what it is, with its unit.
        """
        rounds, values = np.arange(len(self)), self.statistics[name]
        lines = {name: (rounds, values)}
        if self.bound is None:
            return line_chart(title, lines, "round", y_title)
        band = {name: (rounds, values[0] - self.bound, values[0] + self.bound)}
        return line_chart(title, lines, "round", y_title, bands=band)
