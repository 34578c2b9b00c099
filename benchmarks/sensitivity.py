"""Sensitivity: leave-one-out of bags beside one fit of scikit-learn, stability of points beside a loop over rows.

Run with ``python benchmarks/sensitivity.py``. Ratios are medians over pairs of runs in turn.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.ensemble import BaggingRegressor
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeRegressor

from poise.sensitivity import StableBaggingRegressor, counterfactual_stability, leave_one_out_stability

BAGS, ROWS = 500, 300


def ratio(ours: Callable[[], object], theirs: Callable[[], object], pairs: int = 7) -> tuple[float, float, float]:
    """Median and range of the ratio of CPU times."""
    found = []
    for i in range(pairs):
        seconds = {}
        for name in ("ours", "theirs") if i % 2 else ("theirs", "ours"):
            start = time.process_time()
            (ours if name == "ours" else theirs)()
            seconds[name] = time.process_time() - start
        found.append(seconds["ours"] / seconds["theirs"])
    return statistics.median(found), min(found), max(found)


def leave_one_out() -> None:
    """Fit of as many bags, and the change by each training row at 100 points."""
    X, y = load_diabetes(return_X_y=True)
    train, target, points = X[:ROWS], y[:ROWS], X[ROWS : ROWS + 100]

    def ours() -> object:
        bag = StableBaggingRegressor(n_estimators=BAGS, random_state=0).fit(train, target)
        return leave_one_out_stability(bag, points)

    def theirs() -> object:
        bag = BaggingRegressor(DecisionTreeRegressor(), BAGS, max_samples=0.5, bootstrap=False, random_state=0)
        return bag.fit(train, target).predict(points)

    middle, low, high = ratio(ours, theirs)
    print(f"leave-one-out audit over one bagging fit and prediction: {middle:.2f} ({low:.2f} to {high:.2f}), bar 1.15")


def stability() -> None:
    """Relaxed stability of 1,000 points, 1,000 neighbours each, 61 features."""
    rng = np.random.default_rng(0)
    X = rng.random((1000, 61))
    model = LogisticRegression().fit(X, X[:, 0] > 0.5)

    def rowwise() -> list[float]:
        found = []
        for x in X[:20]:  # a fiftieth: it takes long
            here = model.predict_proba(x[None])[0, 1]
            near = [model.predict_proba((x + 0.1 * rng.standard_normal(61))[None])[0, 1] for _ in range(1000)]
            found.append(float(np.mean([n - abs(here - n) for n in near])))
        return found

    start = time.process_time()
    counterfactual_stability(model, X)
    ours = time.process_time() - start
    start = time.process_time()
    rowwise()
    theirs = 50 * (time.process_time() - start)
    print(f"stability of 1,000 points: {ours:.2f} s CPU; row by row takes {theirs / ours:.0f} times (bar 100)")


if __name__ == "__main__":
    leave_one_out()
    stability()
