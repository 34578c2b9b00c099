"""The learners that all estimators of benchmarks/causal.py get, and how their fits are measured."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor

TREES = {"n_estimators": 80, "max_depth": 3, "learning_rate": 0.1, "min_samples_leaf": 10}


def regressor(seed: int) -> Any:
    return GradientBoostingRegressor(**TREES, random_state=seed)


def classifier(seed: int) -> Any:
    return GradientBoostingClassifier(**TREES, random_state=seed)


def measured(
    fits: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray, int], np.ndarray]], data: Any
) -> dict[str, Any]:
    """Return root mean squared errors of effects, CPU and wall seconds of each estimator on each realisation."""
    x, t = data["x"], data["t"]
    found: dict[str, Any] = {name: {"pehe": [], "cpu": [], "wall": []} for name in fits}
    for seed, (y, effect) in enumerate(zip(data["y"], data["effect"], strict=True)):
        for name, fit in fits.items():
            cpu, wall = time.process_time(), time.perf_counter()
            effects = fit(x, y, t, seed)
            found[name]["cpu"].append(time.process_time() - cpu)
            found[name]["wall"].append(time.perf_counter() - wall)
            found[name]["pehe"].append(float(np.sqrt(np.mean((np.ravel(effects) - effect) ** 2))))
    return found


def main(fits: dict[str, Fit]) -> None:
    """Read the data of the first argument (.npz), write the measurements to the second (.json)."""
    with np.load(sys.argv[1]) as data, open(sys.argv[2], "w") as out:
        json.dump(measured(fits, data), out)
