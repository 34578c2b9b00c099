"""Time of the exact critical learning rate of SGD, and of the same number from the dense eigenproblem.

Run with ``python benchmarks/sgd_stability.py``. The peer is what NumPy and SciPy offer without this package: the map of
second moments as a matrix of size rank^2 x rank^2 and its generalised eigenproblem. It is solved for a small rank only;
its time grows with rank^6. One thread: two that wait for each other burn three times the CPU time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy import linalg
from threadpoolctl import threadpool_limits

from poise.dynamics import SecondMomentOperator

REPEATS = 5


def exact(g: np.ndarray) -> float:
    return SecondMomentOperator(torch.from_numpy(g[:, None]), lr=1.0, batch_size=1).critical_lr()


def dense(g: np.ndarray) -> float:
    """Batch size 1: 2 / largest eigenvalue of mean(H_i x H_i) against (G x I + I x G) / 2, in the range of G."""
    n = len(g)
    u, s, _ = np.linalg.svd(g, full_matrices=False)
    z = u * s
    outer = np.einsum("ia,ib->iab", z, z).reshape(n, -1)
    values, one = s**2 / n, np.ones(len(s))
    drift = (np.kron(values, one) + np.kron(one, values)) / 2
    scale = 1 / np.sqrt(drift)
    scaled = scale[:, None] * (outer.T @ outer / n) * scale
    return 2.0 / float(linalg.eigvalsh(scaled, subset_by_index=[len(scaled) - 1, len(scaled) - 1])[0])


def median_seconds(f: Callable[[], float]) -> float:
    """Median CPU time of several calls."""
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        f()
        times.append(time.process_time() - start)
    return statistics.median(times)


@threadpool_limits.wrap(limits=1)
def main() -> None:
    """Print times and ratios."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    small, large = rng.standard_normal((60, 400)), rng.standard_normal((500, 2000))
    ours, peer = median_seconds(lambda: exact(small)), median_seconds(lambda: dense(small))
    print(f"60 examples: here {ours:.4f} s, dense {peer:.3f} s, ratio {peer / ours:.0f}")
    print(f"relative difference: {abs(exact(small) / dense(small) - 1):.1e}")
    print(f"500 examples: {median_seconds(lambda: exact(large)):.2f} s (target 2 s)")


if __name__ == "__main__":
    main()
