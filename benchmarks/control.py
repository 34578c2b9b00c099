"""Time of Riccati equations in a batch, a loop over SciPy's solver beside it, and of one step of a tracking controller.

Run with ``python benchmarks/control.py``. One thread, CPU time, medians of interleaved repetitions in one process.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import scipy.linalg
import torch

from poise.control import Birotor, SDREController, solve_care

BATCH, N, M, REPEATS, STEPS = 256, 6, 2, 7, 100


def cpu_milliseconds(f: Callable[[], object]) -> float:
    start = time.process_time()
    f()
    return 1e3 * (time.process_time() - start)


def care() -> str:
    rng = np.random.default_rng(0)
    A, B = rng.standard_normal((BATCH, N, N)), rng.standard_normal((BATCH, N, M))
    Q, R = np.eye(N), np.eye(M)

    def here() -> np.ndarray:
        return solve_care(A, B, Q, R).numpy()

    def loop() -> np.ndarray:
        return np.stack([scipy.linalg.solve_continuous_are(A[i], B[i], Q, R) for i in range(BATCH)])

    exact, found = loop(), here()
    error = np.linalg.norm(found - exact, axis=(1, 2)) / np.linalg.norm(exact, axis=(1, 2))
    times: dict[str, list[float]] = {"here": [], "loop": []}
    for _ in range(REPEATS):
        times["here"].append(cpu_milliseconds(here))
        times["loop"].append(cpu_milliseconds(loop))
    ours, theirs = (statistics.median(values) for values in times.values())
    return (
        f"CARE, batch {BATCH}, n {N}, m {M}: {ours:.1f} ms, SciPy loop {theirs:.1f} ms, {theirs / ours:.1f} times as "
        f"fast; largest relative difference {error.max():.1e}"
    )


def sdre_step() -> str:
    plant = Birotor()
    controller = SDREController(plant.factorize, torch.eye(6), torch.eye(2))
    xs, us = plant.double_loop(torch.linspace(0, 10, STEPS, dtype=torch.float64))
    moved = xs + 0.1

    def flight() -> None:
        for x, xr, ur in zip(moved, xs, us, strict=True):
            controller(x, xr, ur)

    flight()
    per_step = statistics.median(cpu_milliseconds(flight) / STEPS for _ in range(REPEATS))
    return f"SDRE step, birotor (n 6, m 2), exact factorisation: {per_step:.2f} ms"


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(care())
    print(sdre_step())
