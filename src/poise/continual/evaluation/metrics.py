r"""Metrics of continual evaluation: pure functions of one array, the formula beside each.

``accuracy[n, i]``, written :math:`a_{n,i}`, is the score of evaluation task :math:`i` after update :math:`n` (higher is
better; NaN where it was not evaluated), and ``trained[n]`` the task that update :math:`n` trained, -1 before the first.
:math:`e_i` is the last row at which task :math:`i` was trained, :math:`s_i` the last row of its first stretch of rows,
and :math:`k` counts the tasks trained so far. Rows may be any subset of the updates: minima are then no lower, and
windows are counted in rows.

References: De Lange et al., "Continual evaluation for lifelong learning", ICLR 2023, arXiv:2205.13452; Chaudhry et al.,
"Efficient lifelong learning with A-GEM", ICLR 2019, arXiv:1812.00420.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike, NDArray

Reference = Literal["end", "max"]


def task_mean(values: ArrayLike) -> float:
    r"""Return the mean over tasks, :math:`\frac{1}{k} \sum_i v_i`: every task counts the same."""
    return float(np.mean(np.asarray(values, dtype=float)))


def sample_mean(values: ArrayLike, sizes: ArrayLike) -> float:
    r"""Return the mean over samples, :math:`\sum_i m_i v_i / \sum_i m_i`: every sample counts the same.

    Args:
        values: one a task.
        sizes: :math:`m_i`, held-out samples of each task.

    Raises:
        ValueError: if lengths differ, or no size is positive.
    """
    own, weights = np.asarray(values, dtype=float), np.asarray(sizes, dtype=float)
    if own.shape != weights.shape or not weights.sum() > 0 or (weights < 0).any():
        raise ValueError(f"sizes must be one positive number for each of {own.size} values, got {sizes!r}")
    return float((own * weights).sum() / weights.sum())


def average_accuracy(
    accuracy: Float[np.ndarray, "updates tasks"], trained: Int[np.ndarray, " updates"], sizes: ArrayLike | None = None
) -> float:
    r"""Return the accuracy at the end, over the tasks trained so far: :math:`\frac{1}{k} \sum_{i \le k} a_{N,i}`.

    Args:
        accuracy: :math:`a`.
        trained: the task of each row.
        sizes: samples of each task, for the mean over samples instead of tasks.
    """
    acc, seen = _checked(accuracy, trained)
    last = acc[-1, seen]
    return task_mean(last) if sizes is None else sample_mean(last, np.asarray(sizes)[seen])


def forgetting(
    accuracy: Float[np.ndarray, "updates tasks"],
    trained: Int[np.ndarray, " updates"],
    reference: Reference = "end",
) -> float:
    r"""Return the mean over old tasks of what was lost by the end, :math:`\frac{1}{k-1}\sum_i (r_i - a_{N,i})`.

    Args:
        accuracy: :math:`a`.
        trained: the task of each row.
        reference: ``"end"``: :math:`r_i = a_{e_i,i}`, the score when its training ended; negative where a task improved
            later. ``"max"``: :math:`r_i = \max_{n \le N} a_{n,i}`, the best score ever; never negative. Libraries
            differ in this choice, so name it beside the number.

    Returns:
        NaN if there is no old task.

    Raises:
        ValueError: if ``reference`` is unknown.
    """
    if reference not in ("end", "max"):
        raise ValueError(f"reference must be 'end' or 'max', got {reference!r}")
    acc, seen = _checked(accuracy, trained)
    old = [i for i in seen if i != trained[-1]]
    if not old:
        return math.nan
    kept = [acc[_last_row(trained, i), i] if reference == "end" else np.nanmax(acc[:, i]) for i in old]
    return float(np.mean([r - acc[-1, i] for r, i in zip(kept, old, strict=True)]))


def min_accuracy(
    accuracy: Float[np.ndarray, "updates tasks"], trained: Int[np.ndarray, " updates"], smooth: int = 1
) -> float:
    r"""Return the average minimum accuracy, :math:`\frac{1}{k-1} \sum_{i<k} \min_{n > s_i} a_{n,i}` (min-ACC).

    The minimum of an old task runs over all rows after its first training ended at which another task was trained.

    Args:
        accuracy: :math:`a`.
        trained: the task of each row.
        smooth: rows of a running median that is taken first (3 lowers the downward bias of a noisy evaluation); odd.

    Returns:
        NaN if there is no old task.
    """
    minima = [value for value in task_minima(accuracy, trained, smooth).values() if not math.isnan(value)]
    return float(np.mean(minima)) if minima else math.nan


def task_minima(
    accuracy: Float[np.ndarray, "updates tasks"], trained: Int[np.ndarray, " updates"], smooth: int = 1
) -> dict[int, float]:
    """Return the terms of :func:`min_accuracy` by task: the lowest score of each task while others were trained."""
    acc, seen = _checked(accuracy, trained)
    if smooth < 1 or smooth % 2 == 0:
        raise ValueError(f"smooth must be an odd number of rows, got {smooth}")
    rows = np.arange(len(trained))
    found = {}
    for i in seen:
        later = acc[(rows > first_end(trained, i)) & (trained != i), i]
        later = later[~np.isnan(later)]
        if len(later):
            found[int(i)] = float(_running_median(later, smooth).min())
    return found


def worst_case_accuracy(
    accuracy: Float[np.ndarray, "updates tasks"], trained: Int[np.ndarray, " updates"], smooth: int = 1
) -> float:
    r"""Return :math:`\frac{1}{k} a_{N,k} + (1 - \frac{1}{k}) \text{min-ACC}` (WC-ACC), a lower bound of the accuracy.

    Args:
        accuracy: :math:`a`.
        trained: the task of each row; the last one is :math:`k`.
        smooth: as in :func:`min_accuracy`.
    """
    acc, seen = _checked(accuracy, trained)
    now, worst = float(acc[-1, trained[-1]]), min_accuracy(acc, trained, smooth)
    return now if math.isnan(worst) else now / len(seen) + (1 - 1 / len(seen)) * worst


def windowed_forgetting(accuracy: Float[np.ndarray, "updates tasks"], window: int) -> float:
    r"""Return the mean over tasks of the largest fall within a window of rows (WF).

    .. math:: \max_{m < n < m + w} (a_{m,i} - a_{n,i}), \quad \text{at least } 0

    It needs no boundaries between tasks, and counts the task that is trained, too.

    Args:
        accuracy: :math:`a`.
        window: :math:`w` in rows, at least 2.

    Raises:
        ValueError: if ``window`` is below 2.
    """
    return _windowed(np.asarray(accuracy, dtype=float), window)


def windowed_plasticity(accuracy: Float[np.ndarray, "updates tasks"], window: int) -> float:
    r"""Return the mean over tasks of the largest rise within a window of rows (WP): :func:`windowed_forgetting` of -a.

    Args:
        accuracy: :math:`a`.
        window: in rows, at least 2.

    Raises:
        ValueError: if ``window`` is below 2.
    """
    return _windowed(-np.asarray(accuracy, dtype=float), window)


def learning_curve_area(
    accuracy: Float[np.ndarray, "updates tasks"],
    trained: Int[np.ndarray, " updates"],
    beta: int = 10,
    zero_shot: bool = True,
) -> float:
    r"""Return the mean score of each task over its first ``beta`` rows, averaged over tasks (LCA).

    .. math:: \frac{1}{k} \sum_i \frac{1}{\beta + 1} \sum_{b=0}^{\beta} a_{b_i + b,\, i}

    with :math:`b_i` the last row before task :math:`i` is trained.

    Args:
        accuracy: :math:`a`.
        trained: the task of each row.
        beta: rows of training, at least 1.
        zero_shot: whether the score before the first update counts (A-GEM's definition; NaN is left out of the mean).

    Raises:
        ValueError: if ``beta`` is below 1.
    """
    if beta < 1:
        raise ValueError(f"beta must be at least 1, got {beta}")
    acc, seen = _checked(accuracy, trained)
    areas = []
    for i in seen:
        first = int(np.flatnonzero(trained == i)[0])
        start = max(first - 1, 0) if zero_shot else first
        areas.append(np.nanmean(acc[start : min(first + beta, first_end(trained, i) + 1), i]))
    return float(np.mean(areas))


def average_anytime_accuracy(
    accuracy: Float[np.ndarray, "updates tasks"], trained: Int[np.ndarray, " updates"]
) -> float:
    r"""Return :math:`\frac{1}{N} \sum_n \frac{1}{k(n)} \sum_{i \le k(n)} a_{n,i}`: the mean of the curve (AAA)."""
    acc, _ = _checked(accuracy, trained)
    means = []
    for n in range(len(acc)):
        known = acc[n, np.unique(trained[: n + 1][trained[: n + 1] >= 0])]
        if len(known) and not np.isnan(known).all():
            means.append(np.nanmean(known))
    return float(np.mean(means))


def gap_depth(accuracy: Float[np.ndarray, "updates tasks"], trained: Int[np.ndarray, " updates"], task: int) -> float:
    r"""Return :math:`a_{s_i,i} - \min_{n > s_i} a_{n,i}`: how far a task fell after its training; NaN without rows."""
    acc, _ = _checked(accuracy, trained)
    lowest = task_minima(acc, trained).get(task, math.nan)
    return float(acc[first_end(trained, task), task]) - lowest


def recovery_time(
    accuracy: Float[np.ndarray, "updates tasks"],
    trained: Int[np.ndarray, " updates"],
    task: int,
    tolerance: float = 0.01,
) -> float:
    r"""Return the rows from the end of a task's training to the first one after its minimum that is back.

    Back means :math:`a_{n,i} \ge a_{s_i,i} -` ``tolerance``; infinite if that does not happen, 0 if it never
    fell below.

    Args:
        accuracy: :math:`a`.
        trained: the task of each row.
        task: :math:`i`.
        tolerance: in units of the score.
    """
    acc, _ = _checked(accuracy, trained)
    end = first_end(trained, task)
    later = acc[end + 1 :, task]
    wanted = acc[end, task] - tolerance
    if not len(later) or not (later < wanted).any():
        return 0.0
    lowest = int(np.nanargmin(later))
    back = np.flatnonzero(later[lowest:] >= wanted)
    return float(lowest + back[0] + 1) if len(back) else math.inf


def _checked(accuracy: ArrayLike, trained: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the array, and the tasks trained so far in order of their first row."""
    acc, task = np.asarray(accuracy, dtype=float), np.asarray(trained)
    if acc.ndim != 2 or task.shape != acc.shape[:1]:
        raise ValueError(
            f"accuracy must have the shape (updates, tasks) and trained one entry a row, got {acc.shape} and "
            f"{task.shape}"
        )
    if not len(acc) or task[-1] < 0:
        raise ValueError("accuracy must have at least one row at which a task was trained, got none")
    if task.max() >= acc.shape[1] or task.min() < -1:
        raise ValueError(f"trained must hold tasks from 0 to {acc.shape[1] - 1} (or -1), got {np.unique(task)}")
    started = task[task >= 0]
    _, first = np.unique(started, return_index=True)
    return acc, started[np.sort(first)]


def first_end(trained: NDArray[np.int64], task: int) -> int:
    """Return the last row of the first stretch of rows that trained this task; it must have been trained."""
    mine = np.asarray(trained) == task
    start = int(mine.argmax())
    gap = np.flatnonzero(~mine[start:])
    return start + int(gap[0]) - 1 if len(gap) else len(mine) - 1


def _last_row(trained: NDArray[np.int64], task: int) -> int:
    return int(np.flatnonzero(np.asarray(trained) == task)[-1])


def _running_median(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    if width == 1 or len(values) < width:
        return values
    padded = np.pad(values, width // 2, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=-1)


def _windowed(acc: NDArray[np.float64], window: int) -> float:
    if window < 2:
        raise ValueError(f"window must be at least 2 rows, got {window}")
    falls = []
    for column in acc.T:
        own = column[~np.isnan(column)]
        if not len(own):
            continue
        before = np.concatenate([np.full(window - 2, -np.inf), own[:-1]])  # the window - 1 rows before each later one
        highest = np.lib.stride_tricks.sliding_window_view(before, window - 1).max(-1) if len(own) > 1 else own[:0]
        falls.append(float((highest - own[1:]).max(initial=0.0)))
    return float(np.mean(falls)) if falls else math.nan
