"""How retraining is audited: which trainings, and how their decisions are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped
from sklearn.base import clone, is_classifier
from sklearn.utils import _safe_indexing, check_consistent_length

from poise.evidence.refits import Variant, refit
from poise.sensitivity.churn import Churn, churn
from poise.sensitivity.leave_one_out_stability import leave_one_out_stability
from poise.sensitivity.retraining_audit.facts import DATA, ORDER, SEED, RetrainingFacts
from poise.sensitivity.stable_bagging import StableBaggingClassifier, StableBaggingRegressor
from poise.tools.progress_bar import progress_bar

_BAG_RETRAININGS = 3  # of each kind; a bag costs as much as its members
_DELTA = 0.1


class NonDeterministicTraining(RuntimeError):
    """Two trainings with the same seed and data gave different predictions."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run; the arguments of :func:`audit_retraining`."""

    n_retrain: int
    leave_out: float
    n_bags: int
    tolerance: float
    cost_per_flip: float | None
    allow_nondeterministic: bool
    seed: int

    def __post_init__(self) -> None:
        if self.n_retrain < 1 or self.n_bags < 0:
            raise ValueError(
                f"n_retrain must be at least 1 and n_bags at least 0, got {self.n_retrain!r} and {self.n_bags!r}"
            )
        if not 0 < self.leave_out < 1:
            raise ValueError(f"leave_out must be in (0, 1), got {self.leave_out!r}")
        if not self.tolerance >= 0:
            raise ValueError(f"tolerance must be at least 0, got {self.tolerance!r}")


@dataclass(frozen=True, slots=True, eq=False)
class _Train:
    """Fits a clone to some rows, in their order, and predicts the test rows; picklable."""

    estimator: Any
    X: Any
    y: Shaped[np.ndarray, " rows"]
    X_test: Any

    def __call__(self, rows: Shaped[np.ndarray, " chosen"], seed: int) -> Shaped[np.ndarray, " test"]:
        model = seeded(self.estimator, seed)
        return np.asarray(model.fit(_safe_indexing(self.X, rows), self.y[rows]).predict(self.X_test))


def seeded(estimator: Any, seed: int) -> Any:
    """Return a clone with the seed in every ``random_state`` that it has, also in parts of a pipeline."""
    model = clone(estimator)
    states = {n: seed for n in model.get_params() if n == "random_state" or n.endswith("__random_state")}
    return model.set_params(**states) if states else model


def measure(
    estimator: Any,
    X: Any,
    y: Any,
    X_test: Any,
    plan: Plan,
    *,
    n_jobs: int | None,
    folder: str | Path | None,
    progress: Callable[[int, int], None] | None,
) -> RetrainingFacts:
    """Run all trainings; arguments as in :func:`audit_retraining`."""
    check_consistent_length(X, y)
    y = np.asarray(y)
    classes = is_classifier(estimator)
    tolerance = 0.0 if classes else plan.tolerance * float(np.std(y))
    variants = _variants(len(y), plan)
    bag = _bag(estimator, plan) if plan.n_bags else None
    bags = {name: v for name, v in variants.items() if _is_first(name, _BAG_RETRAININGS)} if bag is not None else {}
    total = len(variants) + len(bags)
    with progress_bar(False if progress is not None else None) as bar:
        task = bar.add_task(f"{len(variants)} trainings and {len(bags)} averages over bags", total=total)

        def report(before: int) -> Callable[[int, int], None]:
            def told(done: int, _: int) -> None:
                bar.update(task, completed=before + done)
                if progress is not None:
                    progress(before + done, total)

            return told

        kept = None if folder is None else Path(folder)
        train = _Train(estimator, X, y, X_test)
        found = refit(train, variants, n_jobs=n_jobs, folder=kept and kept / "single", progress=report(0))
        same_seed = _same_seed(found, tolerance, plan)
        averaged: Mapping[str, Any] = {}
        if bag is not None and len(found) == len(variants):
            train = _Train(bag, _array(X), y, _array(X_test))
            averaged = refit(train, bags, n_jobs=n_jobs, folder=kept and kept / "bags", progress=report(len(variants)))
    single = _by_cause(found, tolerance)
    fitted = None if "base" not in averaged else seeded(bag, plan.seed).fit(_array(X), y)
    names = {n for n in estimator.get_params() if n == "random_state" or n.endswith("__random_state")}
    return RetrainingFacts(
        model=type(estimator).__name__,
        is_classifier=classes,
        churn={cause: result for cause, (result, _) in single.items()},
        rates={cause: rates for cause, (_, rates) in single.items()},
        same_seed=same_seed,
        has_seed=bool(names),
        bag_churn={cause: result for cause, (result, _) in _by_cause(averaged, tolerance).items()},
        n_bags=plan.n_bags,
        guarantee=float("nan") if fitted is None else fitted.guarantee(delta=_DELTA),
        carrying_rows=np.empty(0, int) if fitted is None else _carrying(fitted, _array(X_test)),
        rows=len(y),
        test_rows=len(next(iter(found.values()))),
        leave_out=plan.leave_out,
        tolerance=plan.tolerance,
        cost_per_flip=plan.cost_per_flip,
        missing=[name for name in variants if name not in found] + [f"bag, {n}" for n in bags if n not in averaged],
    )


def _variants(rows: int, plan: Plan) -> dict[str, Variant]:
    rng, every = np.random.default_rng(plan.seed), np.arange(rows)
    fewer = rows - max(1, round(plan.leave_out * rows))
    variants = {"base": Variant(every, plan.seed), "same seed": Variant(every, plan.seed)}
    for i in range(plan.n_retrain):
        variants[f"{SEED} {i}"] = Variant(every, plan.seed + 1 + i)
        variants[f"{ORDER} {i}"] = Variant(rng.permutation(rows), plan.seed)
        variants[f"{DATA} {i}"] = Variant(np.sort(rng.choice(rows, fewer, replace=False)), plan.seed)
    return variants


def _is_first(name: str, count: int) -> bool:
    number = name.rpartition(" ")[2]
    return name == "base" or (number.isdigit() and int(number) < count)


def _bag(estimator: Any, plan: Plan) -> Any:
    if not is_classifier(estimator):
        return StableBaggingRegressor(estimator, n_estimators=plan.n_bags, clip="range")
    if not hasattr(estimator, "predict_proba"):
        return None
    return StableBaggingClassifier(estimator, n_estimators=plan.n_bags)


def _array(X: Any) -> Any:
    return X.to_numpy() if hasattr(X, "to_numpy") else X


def _same_seed(found: Mapping[str, Any], tolerance: float, plan: Plan) -> float:
    if "base" not in found:
        raise KeyboardInterrupt  # nothing to compare with
    if "same seed" not in found:
        return 0.0
    differs = found["same seed"] != found["base"]
    if differs.any() and not plan.allow_nondeterministic:
        raise NonDeterministicTraining(
            f"two trainings with the same seed differ in {differs.mean():.1%} of the predictions: pass the seed to "
            "every part of the estimator, use one thread, or set allow_nondeterministic=True to take this as the noise "
            "floor"
        )
    return churn(found["base"], found["same seed"][None], tolerance).flip_rate


def _by_cause(found: Mapping[str, Any], tolerance: float) -> dict[str, tuple[Churn, np.ndarray]]:
    result = {}
    for cause in (SEED, ORDER, DATA):
        others = [value for name, value in found.items() if name.rpartition(" ")[0] == cause]
        if others:
            each = np.array([churn(found["base"], other[None], tolerance).flip_rate for other in others])
            result[cause] = churn(found["base"], np.stack(others), tolerance), each
    return result


def _carrying(bag: Any, X_test: Any) -> Shaped[np.ndarray, " rows"]:
    stability = leave_one_out_stability(bag, X_test)
    # What finitely many bags add by chance is spread over all rows: it is taken off before half is counted.
    floor = float(stability.noise_floor.sum()) / len(stability.influence)
    influence = np.clip(stability.influence - floor, 0, None)
    order = np.argsort(-influence, kind="stable")
    total = influence[order].cumsum()
    return order[: int(np.searchsorted(total, 0.5 * total[-1])) + 1] if total[-1] > 0 else order[:0]
