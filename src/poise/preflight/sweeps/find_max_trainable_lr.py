"""The largest learning rate that trains, to any precision: a grid brackets it, bisection refines it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from poise.preflight.sweeps.max_trainable_lr import MaxTrainableLR
from poise.preflight.sweeps.sweep import Train, sweep
from poise.report import Report, Table
from poise.report.words import number

Success = Callable[[float, float], bool]


def fell_by_a_fifth(loss: float, init_loss: float) -> bool:
    """Whether a run ended, finite, below 0.8 of the loss it began with.

    Args:
        loss: at the end.
        init_loss: before the first step.
    """
    return math.isfinite(loss) and loss < 0.8 * init_loss


def find_max_trainable_lr(
    train: Train,
    lrs: Iterable[float],
    success: Success = fell_by_a_fifth,
    seeds: int | Sequence[int] = 1,
    precision: float = 1.25,
    n_jobs: int | None = None,
) -> MaxTrainableLR:
    """Return the largest learning rate at which every seed trains, and one close above it that fails.

    All learning rates of the grid are run; between the largest that trains and the next, the geometric mean is run
    until the two are within ``precision``. A coarse grid (factors of 10) and few runs are then as good as a fine one.

    Args:
        train: as for :func:`sweep`: ``train(lr=..., seed=...)`` returns a mapping with ``loss`` and ``init_loss``.
        lrs: a grid that should reach from rates that train to rates that fail.
        success: ``success(loss, init_loss)``. The default suits losses that begin near that of guessing; a network
            whose first loss is far above it may fall by a fifth and learn nothing.
        seeds: how many, or which.
        precision: largest ratio of the failing learning rate to the one that trains, above 1.
        n_jobs: parallel runs, as in joblib.

    Returns:
        ``lr`` is ``None`` if none of the grid trained, ``first_failing`` is ``None`` if the largest of it did.

    Raises:
        ValueError: if ``precision`` is not above 1, and as :func:`sweep` does.

    References:
        Gilmer et al., "A Loss Curvature Perspective on Training Instability in Deep Learning", ICLR 2022,
        arXiv:2110.04369.

    Example:
        >>> def train(lr, seed):
        ...     return {"loss": 0.1 if lr < 0.05 else float("nan"), "init_loss": 1.0}
        >>> found = find_max_trainable_lr(train, [1e-3, 1e-2, 1e-1, 1.0], precision=1.01)
        >>> 0.049 < found.lr < 0.05 <= found.first_failing < 0.051
        True
    """
    if not 1 < precision < math.inf:
        raise ValueError(f"precision must be a ratio above 1, got {precision}")
    trained = _trained(train, lrs, success, seeds, n_jobs)
    working = [lr for lr, ok in trained.items() if ok]
    if not working:
        return MaxTrainableLR(None, min(trained))
    low = max(working)
    high = min((lr for lr in trained if lr > low), default=None)
    while high is not None and high / low > precision:
        middle = math.sqrt(low * high)
        if _trained(train, [middle], success, seeds, n_jobs)[middle]:
            low = middle
        else:
            high = middle
    return MaxTrainableLR(low, high)


def compare_max_trainable_lr(
    strategies: Mapping[str, Train],
    lrs: Iterable[float],
    success: Success = fell_by_a_fifth,
    seeds: int | Sequence[int] = 1,
    precision: float = 1.25,
    n_jobs: int | None = None,
) -> Report:
    """Report which strategy (warm-up, clipping, normalisation, ...) raises the largest learning rate most.

    Args:
        strategies: a function for :func:`find_max_trainable_lr` by name; the first is what the others are compared
            with.
        lrs: as there.
        success: as there; the same for all strategies.
        seeds: as there.
        precision: as there.
        n_jobs: as there.

    Raises:
        ValueError: if there are fewer than 2 strategies, and as :func:`find_max_trainable_lr` does.

    References:
        Gilmer et al., "A Loss Curvature Perspective on Training Instability in Deep Learning", ICLR 2022,
        arXiv:2110.04369.
    """
    if len(strategies) < 2:
        raise ValueError(f"strategies must be at least 2, one to compare with; got {list(strategies)}")
    grid = list(lrs)
    found = {
        name: find_max_trainable_lr(train, grid, success, seeds, precision, n_jobs)
        for name, train in strategies.items()
    }
    base_name, base = next(iter(found.items()))
    factors = {name: _factor(edge, base) for name, edge in found.items()}
    rows = [[name, edge.lr, edge.first_failing, factors[name]] for name, edge in found.items()]
    columns = ["strategy", "trains up to lr", "fails at lr", f"over {base_name}"]
    caption = "No failing learning rate: the whole grid trained, and the true limit lies above it."
    table = Table("Strategies", columns, rows, caption)
    return Report("Largest learning rate by strategy", _summary(found, factors), blocks=[table])


def _trained(
    train: Train, lrs: Iterable[float], success: Success, seeds: int | Sequence[int], n_jobs: int | None
) -> dict[float, bool]:
    """Whether every seed trained, by learning rate."""
    out: dict[float, bool] = {}
    for point in sweep(train, lrs, seeds=seeds, n_jobs=n_jobs).points:
        out[point.lr] = out.get(point.lr, True) and bool(success(point.loss, point.init_loss))
    return out


def _factor(edge: MaxTrainableLR, base: MaxTrainableLR) -> float | None:
    return None if edge.lr is None or base.lr is None else edge.lr / base.lr


def _summary(found: Mapping[str, MaxTrainableLR], factors: Mapping[str, float | None]) -> str:
    base, *others = found
    largest = max((name for name in others if found[name].lr), key=lambda name: found[name].lr or 0, default=None)
    begin = f"{base} trains up to a learning rate of {_words(found[base])}."
    if largest is None:
        return f"{begin} Nothing else trains at any learning rate of the grid."
    factor = factors[largest]
    if factor is not None and factor <= 1:
        return f"{begin} Nothing raises that: {largest} comes closest with {_words(found[largest])}."
    more = "" if factor is None else f", {number(factor)} times that"
    return f"{begin} {largest} raises it most, to {_words(found[largest])}{more}."


def _words(edge: MaxTrainableLR) -> str:
    if edge.lr is None:
        return "none of the grid"
    return f"{'at least ' if edge.first_failing is None else ''}{number(edge.lr)}"
