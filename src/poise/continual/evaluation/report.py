"""The report of an evaluation of every update, and its curves."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from poise.continual.evaluation import metrics
from poise.continual.evaluation.history import AccuracyHistory
from poise.continual.evaluation.rules import RULES
from poise.report import Figure, Report, Table, Text, line_chart
from poise.rules import findings_of
from poise.tools.number import number


def evaluation_report(history: AccuracyHistory) -> Report:
    """Return what the rules find, the curves, a row for each task with its minimum, and all metrics.

    Args:
        history: what an evaluator recorded.
    """
    tasks, found = _task_table(history), history.summary()
    lost = found["minimum accuracy"]
    summary = (
        "One task only: nothing can be forgotten yet."
        if math.isnan(lost)
        else f"While other tasks were trained, tasks fell to {number(lost, 3)} on average; at the end they are at "
        f"{number(found['average accuracy (mean over tasks)'], 3)} ({history.metric}, mean over tasks)."
    )
    rows = [[name, value] for name, value in found.items()]
    caption = (
        "Old tasks are those that were trained before the last one; NaN: there is none. "
        "Windows are counted in evaluations."
    )
    every = int(np.median(np.diff(history.steps))) if len(history.steps) > 1 else 1
    sample = "all held-out samples" if history.exact else "a fixed random subset of the held-out samples"
    notes = (
        f"Evaluated every {every} update{'s' if every > 1 else ''} on {sample}; {len(history.steps)} evaluations took "
        f"{number(history.seconds, 3)} s."
    )
    return Report(
        "Continual evaluation",
        summary,
        findings_of(RULES, history),
        blocks=[
            gap_figure({"": history}),
            tasks,
            Table("Metrics", ["Metric", "Value"], rows, caption),
            Text(notes, "What was measured"),
        ],
    )


def _task_table(history: AccuracyHistory) -> Table:
    minima = metrics.task_minima(history.accuracy, history.trained)
    rows = []
    for i in (int(t) for t in dict.fromkeys(history.trained[history.trained >= 0].tolist())):
        end = history.accuracy[metrics.first_end(history.trained, i), i]
        lowest = minima.get(i, math.nan)
        low, high = _ends(history, lowest, i)
        back = metrics.recovery_time(history.accuracy, history.trained, i)
        rows.append(
            [history.names[i], history.sizes[i], end, lowest, low, high, end - lowest, back, history.accuracy[-1, i]]
        )
    columns = [
        "Task",
        "Samples",
        "When its training ended",
        "Minimum since",
        "Interval, low",
        "Interval, high",
        "Depth",
        "Evaluations to recover",
        "At the end",
    ]
    caption = "Intervals: 95 %, from the number of samples; a minimum of many noisy values is biased downwards."
    return Table("Tasks", columns, rows, caption)


def _ends(history: AccuracyHistory, value: float, task: int) -> tuple[float, float]:
    known = history.metric == "accuracy" and 0 <= value <= 1
    return history.interval(value, task) if known else (math.nan, math.nan)


def gap_figure(histories: Mapping[str, AccuracyHistory], title: str = "Scores while training") -> Figure:
    """Return the curves of every task, with a line where the trained task changes.

    Args:
        histories: by name, such as ``{"trained weights": ..., "served average": ...}``.
        title: of the figure.

    Raises:
        ValueError: if there is none.
    """
    if not histories:
        raise ValueError("histories must hold at least one, got none")
    series, markers = {}, {}
    for prefix, history in histories.items():
        for i, name in enumerate(history.names):
            known = ~np.isnan(history.accuracy[:, i])
            if known.any():
                series[f"{prefix} {name}".strip()] = (history.steps[known], history.accuracy[known, i])
        for row in np.flatnonzero(np.diff(history.trained) != 0):
            if history.trained[row] >= 0:
                markers[f"{history.names[history.trained[row + 1]]} starts"] = float(history.steps[row])
    metric = next(iter(histories.values())).metric
    return line_chart(title, series, "update", metric, markers=markers)
