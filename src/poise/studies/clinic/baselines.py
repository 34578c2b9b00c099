"""What can be said of a run from outside: classifiers that see the schedule only, or loss and gradient norm only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from poise.studies.clinic.corpus import cases
from poise.studies.clinic.runner import Curves, Run
from poise.studies.clinic.scoring import Answer

HEALTHY = "healthy"
WINDOW = 25  # losses that a loss is compared with
Features = NDArray[np.float64]


def deviations(loss: NDArray[np.float64], window: int = WINDOW) -> NDArray[np.float64]:
    """Return by how many robust standard deviations each loss lies above the median of those before it.

    Losses that are not finite are infinitely far above. The first ``window`` losses are compared with as many as there
    are, from five on; before that the deviation is 0.
    """
    result = np.zeros(len(loss))
    for i in range(5, len(loss)):
        if not np.isfinite(loss[i]):
            result[i] = np.inf
            continue
        before = loss[max(0, i - window) : i]
        before = before[np.isfinite(before)]
        if len(before) < 5:
            continue
        median = np.median(before)
        spread = 1.4826 * np.median(np.abs(before - median)) + 1e-3 * abs(median) + 1e-12
        if loss[i] - median > 0.05 * abs(median):
            result[i] = (loss[i] - median) / spread
    return result


def growth(norms: NDArray[np.float64], window: int = WINDOW) -> NDArray[np.float64]:
    """Return each gradient norm over the median of those before it; 1 where there are fewer than five."""
    result = np.ones(len(norms))
    for i in range(5, len(norms)):
        before = norms[max(0, i - window) : i]
        before = before[np.isfinite(before)]
        if len(before) >= 5 and np.isfinite(norms[i]):
            result[i] = norms[i] / max(float(np.median(before)), 1e-30)
    return result


def schedule_features(curves: Curves) -> Features:
    """Return what step count and learning rate tell: length, first, smallest, largest and last rate, largest jumps."""
    lr = curves.lr[np.isfinite(curves.lr)]
    if not len(lr):
        return np.zeros(8)
    logs = np.log10(np.maximum(lr, 1e-12))
    steps = np.diff(logs) if len(logs) > 1 else np.zeros(1)
    return np.array(
        [len(curves.loss), logs[0], logs.min(), logs.max(), logs[-1], steps.max(), steps.min(), np.mean(steps != 0)]
    )


def loss_features(curves: Curves) -> Features:
    """Return what loss and gradient norm tell: levels, spikes above 8 deviations, growth of the norm above 3."""
    loss, norms = curves.loss, curves.grad_norm
    z, rho = np.minimum(deviations(loss), 1e6), growth(norms)
    finite, known = loss[np.isfinite(loss)], norms[np.isfinite(norms)]
    first, last = (np.median(part) if len(part) else 0.0 for part in (finite[:5], finite[-20:]))
    early, late = (np.median(part) if len(part) else 0.0 for part in (known[:5], known[-20:]))
    spikes, jumps = np.flatnonzero(z > 8), np.flatnonzero(rho > 3)

    def size(value: float) -> float:
        return float(np.sign(value) * np.log10(1 + abs(value) * 1e4))

    values = [first, last, last - first, finite.min() if len(finite) else 0.0, early, late, late / max(early, 1e-30)]
    counts = [len(spikes), len(jumps), np.mean(~np.isfinite(loss)) if len(loss) else 0.0]
    places = [where[0] / len(loss) if len(where) else -1.0 for where in (spikes, jumps)]
    return np.array([*map(size, values), size(z.max(initial=0.0)), size(rho.max(initial=1.0)), *counts, *places])


BASELINES: Mapping[str, Callable[[Curves], Features]] = {
    "schedule only": schedule_features,
    "loss and gradient norm only": loss_features,
}


def answers(
    features: Callable[[Curves], Features], development: Sequence[Run], held_out: Sequence[Run], unseen: bool = False
) -> list[Answer]:
    """Fit a random forest on the labels of some runs, and return its answers on others.

    Args:
        features: numbers of a run.
        development: runs to fit.
        held_out: runs to answer.
        unseen: fit, for each run, without all runs that were made from the same healthy script.
    """
    known = cases()

    def script(run: Run) -> str:
        return known[run.case].script if unseen else ""

    result = []
    for group in dict.fromkeys(map(script, held_out)):
        asked = [run for run in held_out if script(run) == group]
        taught = [run for run in development if not unseen or script(run) != group]
        for run, causes in zip(asked, _predictions(features, taught, asked), strict=True):
            result.append(Answer(run.case, causes))
    return result


def _predictions(
    features: Callable[[Curves], Features], taught: Sequence[Run], asked: Sequence[Run]
) -> list[tuple[str, ...]]:
    """Return for each run the three likeliest labels, or nothing where the likeliest is that it is healthy."""
    from sklearn.ensemble import RandomForestClassifier

    def table(runs: Sequence[Run]) -> Features:
        return np.nan_to_num(np.stack([features(run.curves or _NOTHING) for run in runs]), posinf=1e6, neginf=-1e6)

    labels = [(cases()[run.case].causes or (HEALTHY,))[0] for run in taught]
    if len(set(labels)) < 2:
        return [() for _ in asked]
    forest = RandomForestClassifier(200, random_state=0).fit(table(taught), labels)
    ranked = np.argsort(-forest.predict_proba(table(asked)), axis=1)[:, :3]
    named = [tuple(str(forest.classes_[i]) for i in row) for row in ranked]
    return [() if names[0] == HEALTHY else tuple(n for n in names if n != HEALTHY) for names in named]


_NOTHING = Curves(np.empty(0), np.empty(0), np.empty(0))
