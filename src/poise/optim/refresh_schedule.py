"""When costly work that is due every so many steps falls due, so that no single step carries all of it."""

from __future__ import annotations

from functools import lru_cache


@lru_cache(maxsize=256)
def staggered_phases(costs: tuple[int, ...], period: int) -> tuple[int, ...]:
    """Spread jobs over a period: the costliest first, each to the step with the least work so far.

    Args:
        costs: cost of each job, in any unit.
        period: steps after which every job comes round again, at least 1.

    Returns:
        The step of each job, in [0, period).

    References:
        Graham, "Bounds on multiprocessing timing anomalies", SIAM Journal on Applied Mathematics 17, 1969.

    Example:
        >>> staggered_phases((5, 1, 4, 2), 2)
        (0, 0, 1, 1)
    """
    load = [0] * period
    phases = [0] * len(costs)
    for job in sorted(range(len(costs)), key=lambda j: -costs[j]):
        phases[job] = min(range(period), key=load.__getitem__)
        load[phases[job]] += costs[job]
    return tuple(phases)
