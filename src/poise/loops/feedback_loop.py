"""A classifier whose own labels are added to its training data, round after round."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Int, Shaped
from sklearn.base import clone
from sklearn.utils import _safe_indexing, check_consistent_length

from poise.loops.feedback_bound import feedback_bound
from poise.loops.label_rules import LabelRule, label_rule
from poise.loops.loop_statistics import Statistic
from poise.loops.loop_trace import LoopTrace

Accumulate = Literal["all", "subsample"]


@dataclass(frozen=True, slots=True)
class FeedbackLoop:
    """Trains a classifier on a pool to which, in each round, human rows and rows that it labelled itself are added.

    Round t: train on the pool; measure; add ``m`` rows with their true labels; label ``k`` new rows; add them. Nothing
    is used twice.

    Args:
        estimator: classifier; each round trains a clone, so yours stays as it is.
        m: rows with true labels per round.
        k: rows that the classifier labels per round.
        rounds: number of rounds after round 0.
        label_rule: ``"argmax"``, ``"sample"``, or ``rule(model, X, generator)``.
        accumulate: ``"all"`` trains on the whole pool; ``"subsample"`` on as many random rows of it as there were at
            the start.
        seed: of all that is random; it is passed to the estimator too where it takes a ``random_state``.

    Raises:
        ValueError: if a number is out of range, or a name unknown.

    References:
        Taori, Hashimoto, "Data feedback loops: model-driven amplification of dataset biases", ICML 2023,
        arXiv:2209.03942.
    """

    estimator: Any
    m: int = 50
    k: int = 450
    rounds: int = 25
    label_rule: str | LabelRule = "argmax"
    accumulate: Accumulate = "all"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, lowest in {"m": 0, "k": 0, "rounds": 1}.items():
            if getattr(self, name) < lowest:
                raise ValueError(f"{name} must be at least {lowest}, got {getattr(self, name)!r}")
        if self.accumulate not in ("all", "subsample"):
            raise ValueError(f"accumulate must be 'all' or 'subsample', got {self.accumulate!r}")
        label_rule(self.label_rule)
        if self.m == 0 and self.k:
            warnings.warn("m = 0: without human rows the drift has no finite bound", stacklevel=3)

    def run(
        self,
        X: Any,
        y: Any,
        X_reserve: Any,
        y_reserve: Any,
        X_test: Any,
        y_test: Any,
        statistics: Mapping[str, Statistic],
        *,
        delta: float | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> LoopTrace:
        """Run the loop and record what the classifier predicts for the test rows.

        Args:
            X: rows at the start.
            y: their labels.
            X_reserve: rows from which each round draws ``m + k``, without putting them back.
            y_reserve: their true labels; those of the ``k`` rows are never looked at.
            X_test: rows for the statistics.
            y_test: their labels, for the accuracy.
            statistics: by name, ``statistic(X, predicted labels)``.
            delta: calibration error for the bound; by default the bias of the first statistic at round 0.
            progress: called after each round with the rounds done and the rounds in all.

        Returns:
            The trace: statistics of the predictions, ``accuracy``, and the human and model rows that the pool holds.

        Raises:
            ValueError: if the reserve is too small, lengths differ, or a label of the test rows is unknown.
        """
        check_consistent_length(X, y)
        check_consistent_length(X_reserve, y_reserve)
        check_consistent_length(X_test, y_test)
        self._check_reserve(len(y_reserve))
        y, y_reserve, y_test = np.asarray(y), np.asarray(y_reserve), np.asarray(y_test)
        if unknown := set(np.unique(y_test)) - set(np.unique(y)):
            raise ValueError(f"y_test must hold labels of y, got {sorted(unknown)}")
        rng = np.random.default_rng(self.seed)
        order = rng.permutation(len(y_reserve))
        pool = _Pool(X, y)
        found: dict[str, list[float]] = {name: [] for name in (*statistics, "accuracy", "human", "model")}
        for t in range(self.rounds + 1):
            model = self._fitted(pool, len(y), rng)
            predicted = label_rule(self.label_rule)(model, X_test, rng)
            for name, statistic in statistics.items():
                found[name].append(statistic(X_test, predicted))
            found["accuracy"].append(float((predicted == y_test).mean()))
            found["human"].append(pool.human)
            found["model"].append(pool.model)
            if t < self.rounds:
                start = t * (self.m + self.k)
                self._grow(pool, model, X_reserve, y_reserve, order[start : start + self.m + self.k], rng)
            if progress is not None:
                progress(t + 1, self.rounds + 1)
        return self._trace(found, statistics, X_test, y_test, len(y), delta)

    def _check_reserve(self, rows: int) -> None:
        needed = self.rounds * (self.m + self.k)
        if rows < needed:
            most = rows // (self.m + self.k)
            raise ValueError(
                f"X_reserve must hold rounds x (m + k) = {needed} rows, got {rows}: at most {most} rounds are possible"
            )

    def _fitted(self, pool: _Pool, n0: int, rng: np.random.Generator) -> Any:
        model = clone(self.estimator)
        if "random_state" in model.get_params():
            model.set_params(random_state=int(rng.integers(2**31)))
        X, y = pool.rows()
        if self.accumulate == "subsample":
            chosen = rng.choice(len(y), n0, replace=False)
            X, y = _safe_indexing(X, chosen), y[chosen]
        return model.fit(X, y)

    def _grow(
        self, pool: _Pool, model: Any, X: Any, y: Any, rows: Int[np.ndarray, " new"], rng: np.random.Generator
    ) -> None:
        human, machine = rows[: self.m], rows[self.m :]
        pool.add(_safe_indexing(X, human), y[human], "human")
        if len(machine):
            inputs = _safe_indexing(X, machine)
            pool.add(inputs, label_rule(self.label_rule)(model, inputs, rng), "model")

    def _trace(
        self,
        found: Mapping[str, list[float]],
        statistics: Mapping[str, Statistic],
        X_test: Any,
        y_test: Shaped[np.ndarray, " test"],
        n0: int,
        delta: float | None,
    ) -> LoopTrace:
        first = next(iter(statistics))
        error = abs(found[first][0] - statistics[first](X_test, y_test)) if delta is None else delta
        series = {name: np.array(values) for name, values in found.items()}
        return LoopTrace(
            {name: series[name] for name in (*statistics, "accuracy")},
            {name: series[name] for name in ("human", "model")},
            feedback_bound(self.rounds, n0, self.m, self.k, error),
            {"m": self.m, "k": self.k, "rounds": self.rounds, "seed": self.seed, "delta": error},
        )


class _Pool:
    """The rows that are trained on, and where they came from."""

    def __init__(self, X: Any, y: Shaped[np.ndarray, " rows"]) -> None:
        self._X, self._y = [X], [y]
        self.human, self.model = len(y), 0

    def add(self, X: Any, y: Shaped[np.ndarray, " rows"], source: str) -> None:
        if len(y):
            self._X.append(X)
            self._y.append(y)
            setattr(self, source, getattr(self, source) + len(y))

    def rows(self) -> tuple[Any, Shaped[np.ndarray, " rows"]]:
        if len(self._y) > 1:
            self._X, self._y = [_stacked(self._X)], [np.concatenate(self._y)]
        return self._X[0], self._y[0]


def _stacked(parts: list[Any]) -> Any:
    import narwhals as nw
    from scipy import sparse

    if nw.dependencies.is_into_dataframe(parts[0]):
        frames = [nw.from_native(part, eager_only=True) for part in parts]
        return nw.concat(frames).to_native()
    return sparse.vstack(parts) if sparse.issparse(parts[0]) else np.concatenate([np.asarray(part) for part in parts])
