"""Loops that others ran: a log of past rounds, and scikit-learn's self-training."""

from __future__ import annotations

from typing import Any

import narwhals as nw
import numpy as np
from sklearn.semi_supervised import SelfTrainingClassifier

from poise.loops.loop_trace import LoopTrace


def trace_of_log(
    log: Any, label: Any, *, round: str = "round", labels: str = "label", source: str | None = "source"
) -> LoopTrace:
    """Return the trace of a log with one row for each row that was added to a training set.

    Args:
        log: pandas, Polars, Arrow or any other table that Narwhals reads.
        label: the label whose fraction is followed.
        round: column of the round, whole numbers; the first one counts as round 0.
        labels: column of the labels.
        source: column with ``"human"`` or ``"model"``; None if it is not known.

    Returns:
        ``share`` (of the label in all rows so far), ``share_new`` (in the rows of the round), and with ``source``
        ``share_human`` and ``share_model`` (in the rows of the round; NaN for a round without any), with the rows so
        far by source.

    Raises:
        ValueError: if a column is missing, the log is empty, or a source is neither human nor model.
    """
    table = nw.from_native(log, eager_only=True)
    wanted = [round, labels, *([] if source is None else [source])]
    if missing := [name for name in wanted if name not in table.columns]:
        raise ValueError(f"log must have the columns {wanted}, got none named {missing[0]!r}")
    if not len(table):
        raise ValueError("log must have at least one row, got an empty table")
    rounds = np.unique(table[round].to_numpy(), return_inverse=True)[1]
    hit = table[labels].to_numpy() == label
    count = int(rounds.max()) + 1
    new, total = (np.bincount(rounds, weights, count) for weights in (hit, None))
    statistics = {"share": new.cumsum() / total.cumsum(), "share_new": new / total}
    provenance: dict[str, np.ndarray] = {}
    if source is not None:
        who = table[source].to_numpy()
        if strange := set(np.unique(who)) - {"human", "model"}:
            raise ValueError(f"{source} must be 'human' or 'model', got {sorted(map(str, strange))}")
        for name in ("human", "model"):
            own = who == name
            rows, hits = (np.bincount(rounds[own], weights, count) for weights in (None, hit[own]))
            statistics[f"share_{name}"] = np.divide(hits, rows, out=np.full(count, np.nan), where=rows > 0)
            provenance[name] = rows.cumsum()
    return LoopTrace(statistics, provenance, settings={"label": str(label)})


def trace_of_self_training(fitted: SelfTrainingClassifier, label: Any) -> LoopTrace:
    """Return the trace of a fitted self-training classifier: which labels it gave itself, iteration by iteration.

    Args:
        fitted: after ``fit(X, y)`` with -1 for rows without a label.
        label: the label whose fraction is followed.

    Returns:
        ``share`` (of the label in all labelled rows so far) and ``share_new`` (in those of the iteration; NaN for
        none), with the human and model labels so far.

    Raises:
        ValueError: if the classifier is not fitted.
    """
    if not hasattr(fitted, "labeled_iter_"):
        raise ValueError("fitted must be a fitted SelfTrainingClassifier, got one without labeled_iter_")
    iteration, labels = fitted.labeled_iter_, fitted.transduction_
    count = int(iteration.max()) + 1
    own = iteration >= 0
    rows, hits = (np.bincount(iteration[own], weights, count) for weights in (None, labels[own] == label))
    share_new = np.divide(hits, rows, out=np.full(count, np.nan), where=rows > 0)
    provenance = {"human": np.full(count, rows[0]), "model": rows.cumsum() - rows[0]}
    return LoopTrace(
        {"share": hits.cumsum() / rows.cumsum(), "share_new": share_new},
        provenance,
        settings={"label": str(label), "termination": fitted.termination_condition_},
    )
