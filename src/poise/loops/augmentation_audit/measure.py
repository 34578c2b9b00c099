"""How synthetic rows are audited: the same splits with them, without them, and with two controls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import joblib
import numpy as np
from jaxtyping import Float, Shaped
from sklearn.base import clone
from sklearn.model_selection import train_test_split
from sklearn.utils import check_X_y

from poise.loops.augmentation_audit.facts import JITTER, REPEATED, SYNTHETIC, AugmentationFacts
from poise.loops.sample_metrics import diversity, duplicate_share, two_sample_distance
from poise.tools.progress_bar import progress_bar

_NOISE = 0.1  # standard deviations of each column
_MOST_COMPARED = 500


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run; the arguments of :func:`audit_augmentation`."""

    ratios: tuple[float, ...]
    seeds: int
    test_fraction: float

    def __post_init__(self) -> None:
        if not self.ratios or not all(ratio > 0 for ratio in self.ratios):
            raise ValueError(f"ratios must be above 0, at least one, got {list(self.ratios)}")
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {self.seeds!r}")
        if not 0 < self.test_fraction < 1:
            raise ValueError(f"test_fraction must be in (0, 1), got {self.test_fraction!r}")


@dataclass(frozen=True, slots=True, eq=False)
class _Split:
    """What one split gave."""

    plain: tuple[float, float]
    errors: dict[str, list[tuple[float, float]]]  # by source: (held-out, training) for each ratio
    fewer: float
    train_rows: int
    duplicates: float
    diversity: float
    distance: float


def measure(
    fit: Any,
    real: tuple[Any, Any],
    generator: Any,
    plan: Plan,
    *,
    n_jobs: int | None,
    progress: Callable[[int, int], None] | None,
) -> AugmentationFacts:
    """Run all splits; arguments as in :func:`audit_augmentation`."""
    if not (hasattr(fit, "fit") or callable(fit)):
        raise TypeError(f"fit must be a classifier or a function fit(X, y, seed), got {type(fit).__name__}")
    if not hasattr(generator, "sample"):
        raise TypeError(f"generator must have sample(n), got {type(generator).__name__}")
    X, y = check_X_y(*real)
    labels, count = np.unique(y, return_counts=True)
    if len(labels) < 2 or count.min() < 4:
        raise ValueError(
            f"y must hold at least two classes with four rows each, got {dict(zip(labels, count, strict=True))}"
        )
    run = _Runner(fit, X, y, generator, plan)
    splits = _in_parallel(run, plan.seeds, n_jobs, progress)
    if not splits:
        raise KeyboardInterrupt  # nothing to report
    return AugmentationFacts(
        ratios=plan.ratios,
        plain=np.array([s.plain[0] for s in splits]),
        plain_train=np.array([s.plain[1] for s in splits]),
        error={name: _by_ratio(splits, name, 0) for name in splits[0].errors},
        train={name: _by_ratio(splits, name, 1) for name in splits[0].errors},
        fewer=np.array([s.fewer for s in splits]),
        rows=len(y),
        train_rows=splits[0].train_rows,
        duplicates=np.array([s.duplicates for s in splits]),
        diversity=np.array([s.diversity for s in splits]),
        distance=np.array([s.distance for s in splits]),
        refitted=hasattr(generator, "fit"),
        missing=plan.seeds - len(splits),
    )


def _by_ratio(splits: list[_Split], name: str, place: int) -> Float[np.ndarray, "ratios splits"]:
    return np.array([[error[place] for error in split.errors[name]] for split in splits]).T


def _in_parallel(
    run: _Runner, seeds: int, n_jobs: int | None, progress: Callable[[int, int], None] | None
) -> list[_Split]:
    found: list[_Split] = []
    with progress_bar(False if progress is not None else None) as bar:
        task = bar.add_task(f"{seeds} splits, {run.fits} trainings each", total=seeds)
        try:
            for split in joblib.Parallel(n_jobs, return_as="generator")(joblib.delayed(run)(s) for s in range(seeds)):
                found.append(split)
                bar.update(task, completed=len(found))
                if progress is not None:
                    progress(len(found), seeds)
        except KeyboardInterrupt:
            pass  # what is finished is still worth a report
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Runner:
    """Runs one split; picklable, so that splits run in parallel."""

    fit: Any
    X: Float[np.ndarray, "rows dim"]
    y: Shaped[np.ndarray, " rows"]
    generator: Any
    plan: Plan

    @property
    def fits(self) -> int:
        """Trainings of a split."""
        return 2 + 3 * len(self.plan.ratios)

    def __call__(self, seed: int) -> _Split:
        X, X_test, y, y_test = train_test_split(
            self.X, self.y, test_size=self.plan.test_fraction, random_state=seed, stratify=self.y
        )
        rng = np.random.default_rng(seed)
        most = int(max(self.plan.ratios) * len(y))
        rows, labels = self._drawn(X, y, most, seed)
        order = rng.permutation(most)  # a generator may return its classes one after the other
        pick = rng.integers(len(y), size=most)
        noise = _NOISE * X.std(0) * rng.standard_normal((most, X.shape[1]))
        further = {
            SYNTHETIC: (rows[order], labels[order]),
            JITTER: (X[pick] + noise, y[pick]),
            REPEATED: (X[pick], y[pick]),
        }
        errors = {
            name: [
                self._errors(*_joined(X, y, more, int(ratio * len(y))), X_test, y_test, seed)
                for ratio in self.plan.ratios
            ]
            for name, more in further.items()
        }
        half = rng.permutation(len(y))[: len(y) // 2]
        enough = len(np.unique(y[half])) == len(np.unique(y))
        fewer = self._errors(X[half], y[half], X_test, y_test, seed)[0] if enough else float("nan")
        few = order[:_MOST_COMPARED]
        return _Split(
            self._errors(X, y, X_test, y_test, seed),
            errors,
            fewer,
            len(y),
            duplicate_share(rows[few], X),
            diversity(rows, X),
            two_sample_distance(rows[few], X_test[:_MOST_COMPARED], seed)
            if min(len(few), len(y_test)) >= 10
            else np.nan,
        )

    def _drawn(
        self, X: Float[np.ndarray, "rows dim"], y: Shaped[np.ndarray, " rows"], count: int, seed: int
    ) -> tuple[Float[np.ndarray, "count dim"], Shaped[np.ndarray, " count"]]:
        generator = self.generator
        if hasattr(generator, "fit"):
            generator = clone(generator, safe=False)
            if hasattr(generator, "get_params") and "random_state" in generator.get_params():
                generator.set_params(random_state=seed)
            generator = generator.fit(X, y) or generator
        drawn = generator.sample(count)
        if not (isinstance(drawn, tuple) and len(drawn) == 2):
            raise ValueError(f"generator must return (rows, labels) from sample(n), got {type(drawn).__name__}")
        rows, labels = np.asarray(drawn[0], float), np.asarray(drawn[1])
        if rows.shape != (count, X.shape[1]) or not np.isfinite(rows).all():
            raise ValueError(f"generator must return finite rows of shape ({count}, {X.shape[1]}), got {rows.shape}")
        if unknown := set(np.unique(labels).tolist()) - set(np.unique(y).tolist()):
            raise ValueError(f"generator must return labels of y, got {sorted(unknown)}")
        return rows, labels

    def _errors(
        self,
        X: Float[np.ndarray, "rows dim"],
        y: Shaped[np.ndarray, " rows"],
        X_test: Float[np.ndarray, "test dim"],
        y_test: Shaped[np.ndarray, " test"],
        seed: int,
    ) -> tuple[float, float]:
        if hasattr(self.fit, "fit"):
            model = clone(self.fit)
            if "random_state" in model.get_params():
                model.set_params(random_state=seed)
            model.fit(X, y)
        else:
            model = self.fit(X, y, seed)
        return float((model.predict(X_test) != y_test).mean()), float((model.predict(X) != y).mean())


def _joined(
    X: Float[np.ndarray, "rows dim"],
    y: Shaped[np.ndarray, " rows"],
    more: tuple[Float[np.ndarray, "more dim"], Shaped[np.ndarray, " more"]],
    count: int,
) -> tuple[Float[np.ndarray, "all dim"], Shaped[np.ndarray, " all"]]:
    return np.concatenate([X, more[0][:count]]), np.concatenate([y, more[1][:count]])
