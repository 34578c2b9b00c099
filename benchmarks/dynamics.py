"""Time of the leading eigenvalues of a discretised pore: shift-and-invert here, dense LAPACK and ARPACK beside it.

Run with ``python benchmarks/dynamics.py [--unknowns N]``. All start from the same sparse Jacobian in one process; CPU
time, medians of interleaved repetitions. The dense solver takes minutes at 5000 unknowns: it runs once there.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import scipy.sparse.linalg

from poise.dynamics import CatalyticPore
from poise.dynamics.systems.leading_eigenvalues import dense_eigenvalues, rightmost_eigenvalues

K, REPEATS, DENSE_ONCE = 6, 5, 2000
ROWS: dict[int, tuple[int, int]] = {660: (10, 20), 1980: (19, 33), 4992: (25, 64)}


def cpu_seconds(f: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """CPU time of one call and what it returned."""
    start = time.process_time()
    values = f()
    return time.process_time() - start, values


def compare(unknowns: int) -> str:
    """One row: times, ratios and the largest relative difference of the eigenvalues."""
    pore = CatalyticPore(*ROWS[unknowns])
    x = pore.equilibrium(pore.state([0.5] * 3, [0.3] * 3))
    jacobian = pore.jacobian(x)

    def here() -> np.ndarray:
        return np.sort(rightmost_eigenvalues(jacobian, K).values.real)[::-1][:K]

    def dense() -> np.ndarray:
        return np.sort(dense_eigenvalues(jacobian).values.real)[::-1][:K]

    def arpack() -> np.ndarray:
        try:
            found = scipy.sparse.linalg.eigs(jacobian, k=K, which="LR", return_eigenvectors=False)
        except scipy.sparse.linalg.ArpackNoConvergence as error:
            found = error.eigenvalues
        return np.sort(found.real)[::-1]

    once = unknowns > DENSE_ONCE
    dense_time, reference = cpu_seconds(dense)
    times: dict[str, list[float]] = {"here": [], "dense": [dense_time], "arpack": []}
    for i in range(REPEATS):
        times["here"].append(cpu_seconds(here)[0])
        times["arpack"].append(cpu_seconds(arpack)[0])
        if i and not once:
            times["dense"].append(cpu_seconds(dense)[0])
    median = {name: statistics.median(values) for name, values in times.items()}
    error = float(np.abs(here() / reference - 1).max())
    return (
        f"{unknowns:>8} {median['here']:>9.3f} {median['dense']:>9.3f} {median['arpack']:>9.3f} "
        f"{median['dense'] / median['here']:>11.1f} {len(arpack()):>12}/{K} {error:>12.1e}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--unknowns", type=int, choices=sorted(ROWS), nargs="*", default=sorted(ROWS))
    print("unknowns    here s   dense s  ARPACK s  dense/here  ARPACK found   difference   (target ratio 5 at 5000)")
    for unknowns in parser.parse_args().unknowns:
        print(compare(unknowns), flush=True)


if __name__ == "__main__":
    main()
