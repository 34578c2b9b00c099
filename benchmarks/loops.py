"""Loops: the Gaussian toy beside its published formulation, the cost of a trace, 25 rounds on 32,561 rows.

Run with ``python benchmarks/loops.py``.
"""

from __future__ import annotations

import os
import statistics
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from poise.loops import FeedbackLoop, label_share
from poise.studies.data_feedback_loops import START, TEST, census
from poise.studies.self_correcting_loops import Plan, toy_distances

GENERATIONS = 30


def corrected(
    density: np.ndarray, x_edges: np.ndarray, y_edges: np.ndarray, weight: float, rng: np.random.Generator
) -> list[np.ndarray]:
    """Draw 25 points of the mixture of the truth and the histogram."""

    def mixture(point: np.ndarray) -> float:
        i, j = np.searchsorted(x_edges, point[0]) - 1, np.searchsorted(y_edges, point[1]) - 1
        own = density[i, j] if 0 <= i < 10 and 0 <= j < 10 else 0.0
        return weight * np.exp(-0.5 * point @ point) / (2 * np.pi) + (1 - weight) * own

    bound = weight + (1 - weight) * density.max() * 2 * np.pi
    accepted: list[np.ndarray] = []
    while len(accepted) < 25:
        point = rng.standard_normal(2)
        if rng.random() * bound * np.exp(-0.5 * point @ point) / (2 * np.pi) < mixture(point):
            accepted.append(point)
    return accepted


def published_toy(gamma: float, seed: int) -> None:
    """One loop as published: a histogram of the samples, and rejection sampling one point at a time."""
    rng = np.random.default_rng(seed)
    real = rng.standard_normal((50, 2))
    mean, cov = real.mean(0), np.cov(real.T, ddof=0)
    for _ in range(GENERATIONS):
        samples = rng.multivariate_normal(mean, cov, 25)
        accepted = corrected(*np.histogram2d(*samples.T, bins=10, density=True), gamma / (1 + gamma), rng)
        rows = np.concatenate([real, accepted])
        mean, cov = rows.mean(0), np.cov(rows.T, ddof=0)


def toy() -> None:
    """CPU time of one loop of 30 generations."""
    plan = Plan(generations=GENERATIONS, chains=20)
    ratios = []
    for seed in range(5):
        start = time.process_time()
        toy_distances(0.1, plan, seed)
        ours = (time.process_time() - start) / plan.chains
        start = time.process_time()
        published_toy(0.1, seed)
        ratios.append((time.process_time() - start) / ours)
    print(f"Gaussian toy, published formulation over ours, one loop: {statistics.median(ratios):.0f} (bar 50)")


def feedback() -> None:
    """25 rounds with 8 seeds on the census rows, and what the trace costs over the bare fits."""
    X, y = census("gender")
    bare, whole = 0.0, 0.0
    for seed in range(8):
        order = np.random.default_rng(seed).permutation(len(y))
        start, reserve, test = np.split(order, [START, len(order) - TEST])
        loop = FeedbackLoop(LinearDiscriminantAnalysis(), 50, 450, 25, seed=seed)
        began = time.process_time()
        loop.run(X[start], y[start], X[reserve], y[reserve], X[test], y[test], {"share": label_share(1)})
        whole += time.process_time() - began
        began = time.process_time()
        rows, labels = X[start], y[start]
        for t in range(26):
            model = LinearDiscriminantAnalysis().fit(rows, labels)
            model.predict(X[test])
            new = reserve[t * 500 : (t + 1) * 500]
            rows = np.concatenate([rows, X[new]])
            labels = np.concatenate([labels, y[new[:50]], model.predict(X[new[50:]])])
        bare += time.process_time() - began
    over = whole / bare
    print(f"25 rounds x 8 seeds, {len(y):,} rows: {whole:.1f} s CPU (bar 60); over a bare loop {over:.2f} (bar 1.05)")


if __name__ == "__main__":
    toy()
    feedback()
