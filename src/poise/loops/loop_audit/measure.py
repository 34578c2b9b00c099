"""How a feedback loop is audited: four loops for each seed, and the calibration of the classifier."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import joblib
import numpy as np
from jaxtyping import Float, Int, Shaped
from sklearn.utils import _safe_indexing, check_consistent_length

from poise.loops.consistent_calibration import consistent_calibration
from poise.loops.feedback_bound import feedback_bound
from poise.loops.feedback_loop import FeedbackLoop
from poise.loops.loop_audit.facts import DRAWN, LIKELIEST, MORE_HUMAN, TRUE, LoopFacts
from poise.loops.loop_statistics import Statistic, label_share
from poise.loops.loop_trace import LoopTrace
from poise.tools.progress_bar import progress_bar

_MORE = 4  # times the human rows, at the cost of as many model-labelled ones
_MOST_TEST = 3000


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run; the arguments of :func:`audit_loop`."""

    m: int
    k: int
    rounds: int
    n_start: int | None
    tolerance: float
    seeds: int

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {self.seeds!r}")
        if not self.tolerance > 0:
            raise ValueError(f"tolerance must be above 0, got {self.tolerance!r}")

    @property
    def more_human(self) -> int:
        """Human rows per round in the loop with more of them; the rows per round stay the same."""
        return min(self.m + self.k, max(1, _MORE * self.m))


def measure(
    model: Any,
    X: Any,
    y: Any,
    statistic: str | Statistic,
    plan: Plan,
    *,
    n_jobs: int | None,
    progress: Callable[[int, int], None] | None,
) -> LoopFacts:
    """Run all loops; arguments as in :func:`audit_loop`."""
    check_consistent_length(X, y)
    y = np.asarray(y)
    classes = np.unique(y)
    name, function = _named(statistic, classes)
    n_start, n_test = _sizes(len(y), plan)
    loops, missing = _loops(model, plan)
    cells = [(loop, seed) for loop in loops for seed in range(plan.seeds)]
    run = _Runner(X, y, {name: function, "classes": _classes_predicted}, n_start, n_test, plan)
    found = _in_parallel(run, loops, cells, n_jobs, progress)
    complete = [loop for loop in loops if all((loop, seed) in found for seed in range(plan.seeds))]
    if LIKELIEST not in complete:
        raise KeyboardInterrupt  # nothing to report
    calibration = consistent_calibration(model, X, y, function, n_train=n_start, n_fits=plan.seeds)
    traces = {loop: [found[loop, seed] for seed in range(plan.seeds)] for loop in complete}
    return LoopFacts(
        statistic=name,
        truth=np.array([function(*run.test_rows(seed)) for seed in range(plan.seeds)]),
        values={loop: _stacked(runs, name) for loop, runs in traces.items()},
        accuracy={loop: _stacked(runs, "accuracy") for loop, runs in traces.items()},
        classes={loop: int(_stacked(runs, "classes")[:, -1].min()) for loop, runs in traces.items()},
        n_classes=len(classes),
        bound=feedback_bound(plan.rounds, n_start, plan.m, plan.k, calibration.delta),
        delta=calibration.delta,
        delta_unshifted=calibration.unshifted,
        m=plan.m,
        k=plan.k,
        more_human=plan.more_human,
        n_start=n_start,
        tolerance=plan.tolerance,
        missing=[*missing, *(f"{loop}: not finished" for loop in loops if loop not in complete)],
    )


def _stacked(traces: list[LoopTrace], name: str) -> Float[np.ndarray, "seeds rounds"]:
    return np.stack([trace.statistics[name] for trace in traces])


def _named(statistic: str | Statistic, classes: Shaped[np.ndarray, " classes"]) -> tuple[str, Statistic]:
    if callable(statistic):
        return getattr(statistic, "__name__", "statistic"), statistic
    if statistic != "positive_rate":
        raise ValueError(f"statistic must be 'positive_rate' or a function of rows and labels, got {statistic!r}")
    if len(classes) < 2:
        raise ValueError(f"y must hold at least two classes, got {classes.tolist()}")
    return f"share of {classes[-1]}", label_share(classes[-1])


def _classes_predicted(X: Any, labels: Shaped[np.ndarray, " rows"]) -> float:
    return float(len(np.unique(labels)))


def _sizes(rows: int, plan: Plan) -> tuple[int, int]:
    """How many rows start and how many are tested."""
    per_round = plan.m + plan.k
    n_test = min(_MOST_TEST, rows // 5)
    left = rows - n_test - plan.rounds * per_round
    start = (1000 if left >= 1000 else left // 2) if plan.n_start is None else plan.n_start
    if start < 2 or start > left:
        least = 2 if plan.n_start is None else plan.n_start
        most = max(0, (rows - n_test - least) // per_round) if per_round else plan.rounds
        raise ValueError(
            f"X must hold a start of {least} rows, {plan.rounds} rounds of {per_round} and a test set of {n_test}, got "
            f"{rows} rows: at most {most} rounds are possible"
        )
    return start, n_test


def _loops(model: Any, plan: Plan) -> tuple[dict[str, FeedbackLoop], list[str]]:
    base = FeedbackLoop(model, plan.m, plan.k, plan.rounds)
    loops = {LIKELIEST: base, TRUE: replace(base, m=plan.m + plan.k, k=0)}
    missing = []
    if hasattr(model, "predict_proba"):
        loops[DRAWN] = replace(base, label_rule="sample")
    else:
        missing.append(f"{DRAWN}: {type(model).__name__} has no predict_proba")
    if plan.more_human > plan.m:
        loops[MORE_HUMAN] = replace(base, m=plan.more_human, k=plan.m + plan.k - plan.more_human)
    return loops, missing


@dataclass(frozen=True, slots=True, eq=False)
class _Runner:
    """Runs one loop with one seed; picklable, so that loops run in parallel."""

    X: Any
    y: Shaped[np.ndarray, " rows"]
    statistics: Mapping[str, Statistic]
    n_start: int
    n_test: int
    plan: Plan

    def parts(self, seed: int) -> tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"], Int[np.ndarray, " c"]]:
        order = np.random.default_rng(seed).permutation(len(self.y))
        return order[: self.n_start], order[self.n_start : len(order) - self.n_test], order[len(order) - self.n_test :]

    def test_rows(self, seed: int) -> tuple[Any, Shaped[np.ndarray, " test"]]:
        test = self.parts(seed)[2]
        return _safe_indexing(self.X, test), self.y[test]

    def __call__(self, name: str, loop: FeedbackLoop, seed: int) -> tuple[tuple[str, int], LoopTrace]:
        start, reserve, test = ((_safe_indexing(self.X, rows), self.y[rows]) for rows in self.parts(seed))
        return (name, seed), replace(loop, seed=seed).run(*start, *reserve, *test, self.statistics)


def _in_parallel(
    run: _Runner,
    loops: Mapping[str, FeedbackLoop],
    cells: list[tuple[str, int]],
    n_jobs: int | None,
    progress: Callable[[int, int], None] | None,
) -> dict[tuple[str, int], LoopTrace]:
    found: dict[tuple[str, int], LoopTrace] = {}
    jobs = [joblib.delayed(run)(name, loops[name], seed) for name, seed in cells]
    with progress_bar(False if progress is not None else None) as bar:
        task = bar.add_task(f"{len(cells)} loops", total=len(cells))
        try:
            for key, trace in joblib.Parallel(n_jobs, return_as="generator_unordered")(jobs):
                found[key] = trace
                bar.update(task, completed=len(found))
                if progress is not None:
                    progress(len(found), len(cells))
        except KeyboardInterrupt:
            pass  # what is finished is still worth a report
    return found
