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
    are, from five on; before that, and where a loss is above the median by less than 5 % of it, the deviation is 0.
    """
    before = _before(loss, window)
    median, known = _median(before), np.isfinite(before).sum(1) >= 5
    spread = 1.4826 * _median(np.abs(before - median[:, None])) + 1e-3 * np.abs(median) + 1e-12
    above = known & (loss - median > 0.05 * np.abs(median))
    result = np.where(above, (loss - median) / spread, 0.0)
    return np.where(np.isfinite(loss), result, np.inf)


def growth(norms: NDArray[np.float64], window: int = WINDOW) -> NDArray[np.float64]:
    """Return each gradient norm over the median of those before it; 1 where there are fewer than five, or it is NaN."""
    before = _before(norms, window)
    known = (np.isfinite(before).sum(1) >= 5) & np.isfinite(norms)
    return np.where(known, norms / np.maximum(_median(before), 1e-30), 1.0)


def _before(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Return for each value those before it, one row each; NaN where there are none or they are not finite."""
    finite = np.where(np.isfinite(values), values, np.nan)
    return np.lib.stride_tricks.sliding_window_view(np.concatenate([np.full(window, np.nan), finite]), window)[:-1]


def _median(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the medians of the known values of rows; 0 where none is known."""
    ordered = np.sort(rows, axis=1)  # NaN last
    count = np.isfinite(ordered).sum(1)
    low, high = np.maximum(count - 1, 0) // 2, np.maximum(count, 1) // 2
    each = np.arange(len(rows))
    return np.nan_to_num((ordered[each, low] + ordered[each, high]) / 2)


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
        unseen: fit, for each run, without all runs that were made from the same healthy script. What no such run is
            left for has no answer.
    """
    known = cases()
    rows = {id(run): np.nan_to_num(features(run.curves or _NOTHING), posinf=1e6, neginf=-1e6) for run in development}
    rows |= {id(run): np.nan_to_num(features(run.curves or _NOTHING), posinf=1e6, neginf=-1e6) for run in held_out}
    result: dict[int, tuple[str, ...]] = {}
    for group in {known[run.case].script for run in held_out} if unseen else {""}:
        taught = [run for run in development if known[run.case].script != group]
        asked = [run for run in held_out if not unseen or known[run.case].script == group]
        if not taught:  # the clinic has scripts of one kind only: nothing is known of others
            result |= dict.fromkeys(map(id, asked), ())
            continue
        labels = [(known[run.case].causes or (HEALTHY,))[0] for run in taught]
        table, questions = (np.stack([rows[id(run)] for run in runs]) for runs in (taught, asked))
        result |= {id(run): c for run, c in zip(asked, _likeliest(table, labels, questions), strict=True)}
    return [Answer(run.case, result[id(run)]) for run in held_out]


def _likeliest(table: Features, labels: Sequence[str], questions: Features) -> list[tuple[str, ...]]:
    """Return for each row the three likeliest labels, or nothing where the likeliest is that the run is healthy."""
    from sklearn.ensemble import RandomForestClassifier

    forest = RandomForestClassifier(100, random_state=0).fit(table, labels)
    ranked = np.argsort(-forest.predict_proba(questions), axis=1)[:, :3]
    named = [tuple(str(forest.classes_[i]) for i in row) for row in ranked]
    return [() if names[0] == HEALTHY else tuple(name for name in names if name != HEALTHY) for names in named]


_NOTHING = Curves(np.empty(0), np.empty(0), np.empty(0))
