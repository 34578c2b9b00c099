"""Study of the training doctor: the causes that it names for faults that were put into scripts.

The public clinic (`poise.studies.clinic`) holds ordinary training scripts, faults as small edits of their text, and
healthy variants. Every script runs unmodified under ``poise run`` with its default settings. Half of the seeds are for
development: the baselines are fitted on them. The verdicts are of the other half; the doctor's rules are the same in
both, and no number of this file is among their thresholds.
"""

from __future__ import annotations

import itertools
import queue
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import plotly.graph_objects as go
from joblib import parallel_config

from poise.evidence import clopper_pearson
from poise.report import Figure, Table, Text
from poise.studies.clinic.baselines import BASELINES, answers, deviations
from poise.studies.clinic.corpus import Case, cases, faults
from poise.studies.clinic.runner import Run, Server
from poise.studies.clinic.scoring import Answer, Score, is_right, score
from poise.studies.kit import Budget, ClaimResult, Measured, Paper, Presentation, Progress, Study, claim
from poise.studies.kit.grid import part_of, run_each
from poise.studies.kit.rules import above, at_least, at_most, below
from poise.studies.kit.seed_interval import seed_interval

SPIKE = 8.0  # robust standard deviations above the median of the losses before, in the definition of an event
EARLY_CAUSES = {
    "lr_too_high",
    "lr_above_curvature",
    "attention_logit_growth",
    "stale_second_moment",
    "adam_time_correlation",
}
BINS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0)  # of the reliability table
TINY = ("binary", "binary-sigmoid-twice")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a budget buys.

    Args:
        parts: the cases are dealt into so many parts, by their place in the list, and a run takes one of them: that of
            the hundreds of its first seed. The two recorded sets of seeds so cover both halves.
        each: runs of each case in each half of the seeds; seeds take turns from case to case.
        n_jobs: scripts that run at the same time.
    """

    parts: int = 2
    each: int = 1
    n_jobs: int = 2


PLANS: dict[Budget, Plan] = {"tiny": Plan(1, n_jobs=1), "default": Plan(), "full": Plan(1, each=3)}

# --- the experiment ----------------------------------------------------------------------------------------------


def cells(budget: Budget, seeds: Sequence[int]) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Return the runs, (case, seed), of the development half of the seeds and of the held-out half.

    Args:
        budget: says which cases there are, and how often each runs.
        seeds: the first half of them, rounded up, is for development. Of a single seed both halves are the same.
    """
    plan = PLANS[budget]
    names = [name for name in cases() if budget != "tiny" or name in TINY]
    taken = [(place, name) for place, name in enumerate(names) if place % plan.parts == seeds[0] // 100 % plan.parts]
    middle = (len(seeds) + 1) // 2
    halves = seeds[:middle], seeds[middle:] or seeds[:middle]
    first, second = (
        [(name, half[(place // plan.parts + k) % len(half)]) for place, name in taken for k in range(plan.each)]
        for half in halves
    )
    return first, second


@dataclass(frozen=True)
class Results:
    """All runs under the watch.

    Args:
        development: runs with the first half of the seeds.
        held_out: runs with the second half.
    """

    development: tuple[Run, ...]
    held_out: tuple[Run, ...]

    @cached_property
    def doctor(self) -> Score:
        """The doctor's score on the held-out runs."""
        return score(map(answer, self.held_out))

    @cached_property
    def baselines(self) -> Mapping[str, tuple[Score, Score]]:
        """Scores on the held-out runs: of a classifier that knows the same scripts, and of one that does not."""
        runs = self.development, self.held_out
        return {
            name: (score(answers(features, *runs)), score(answers(features, *runs, unseen=True)))
            for name, features in BASELINES.items()
        }

    @property
    def healthy(self) -> list[Run]:
        """Held-out runs of healthy scripts."""
        return [run for run in self.held_out if cases()[run.case].is_healthy]


def answer(run: Run) -> Answer:
    """Return the doctor's answer: the causes of its errors and warnings, in its order."""
    return Answer(run.case, tuple(finding.cause for finding in run.alarms))


def experiment(budget: Budget, seeds: Sequence[int], progress: Progress) -> Results:
    """Run the scripts, several at a time, each in a process of its own."""
    first, second = cells(budget, seeds)
    known, n_jobs = cases(), PLANS[budget].n_jobs
    servers: queue.SimpleQueue[Server] = queue.SimpleQueue()
    for _ in range(n_jobs):
        servers.put(Server())

    def watch(cell: tuple[str, int]) -> Run:
        server = servers.get()
        try:
            return server.run(known[cell[0]], cell[1])
        finally:
            servers.put(server)

    try:
        with parallel_config("threading"):  # the work is in the servers' children
            order = list(dict.fromkeys([*first, *second]))
            runs = run_each(watch, order, part_of(progress, 0, 0.97), n_jobs, "{0[0]}, seed {0[1]}".format)
    finally:
        for _ in range(n_jobs):
            servers.get().close()
    results = Results(tuple(runs[cell] for cell in first), tuple(runs[cell] for cell in second))
    progress(0.98, "baselines")
    _ = results.baselines
    return results


# --- what is measured --------------------------------------------------------------------------------------------


def event(run: Run) -> int | None:
    """Return the step at which a user who watches the loss sees that something is wrong; ``None`` if there is none."""
    if run.curves is None:
        return None
    seen = np.flatnonzero((deviations(run.curves.loss) > SPIKE) | ~np.isfinite(run.curves.loss))
    return int(seen[0]) if len(seen) else None


def leads(runs: Sequence[Run]) -> list[int]:
    """Return by how many steps right first alarms were ahead of the event, where there was one."""
    result = []
    for run in runs:
        alarms, seen = run.alarms, event(run)
        if seen is None or not alarms or alarms[0].detected_step is None:
            continue
        if is_right(cases()[run.case], [alarms[0].cause]) and alarms[0].cause in EARLY_CAUSES:
            result.append(seen - alarms[0].detected_step)
    return result


def confidences(runs: Sequence[Run]) -> list[tuple[float, bool]]:
    """Return, for each run with an alarm, the confidence of the first and whether it is right."""
    first = [(run, run.alarms[0]) for run in runs if run.alarms]
    return [(finding.probability, is_right(cases()[run.case], [finding.cause])) for run, finding in first]


def fraction(outcomes: Sequence[bool]) -> str:
    """Return a fraction in words, with its exact 95 % interval."""
    if not outcomes:
        return "none"
    low, high = clopper_pearson(sum(outcomes), len(outcomes))
    return f"{sum(outcomes)} of {len(outcomes)} ({sum(outcomes) / len(outcomes):.1%}, interval {low:.1%} to {high:.1%})"


# --- the claims --------------------------------------------------------------------------------------------------


@claim(
    "first",
    "The cause that the doctor names first is the right one.",
    paper="at least 85 % of the faults",
    protocol="Held-out seeds; top1: fraction of the runs with a fault whose first error or warning names one of the "
    "causes that were fixed before; ends of its exact 95 % interval over runs.",
    reproduced=at_least("top1", 0.85) & at_least("lower_end", 0.75),
    refuted=below("upper_end", 0.85),
    without_seeds="the ends of the interval over runs are judged.",
)
def first(results: Results) -> Measured:
    before = score(map(answer, results.development)).first
    return _measured("top1", results.doctor.first, f"; with the development seeds {fraction(before)}")


@claim(
    "among-three",
    "The right cause is among the first three.",
    paper="at least 95 % of the faults",
    protocol="As above, of the first three errors and warnings.",
    reproduced=at_least("top3", 0.95) & at_least("lower_end", 0.85),
    refuted=below("upper_end", 0.95),
    without_seeds="the ends of the interval over runs are judged.",
)
def among_three(results: Results) -> Measured:
    before = score(map(answer, results.development)).among_three
    return _measured("top3", results.doctor.among_three, f"; with the development seeds {fraction(before)}")


@claim(
    "precision",
    "An alarm is right.",
    paper="at least 85 % of the alarms",
    protocol="Fraction of all held-out runs with an alarm, faulty or healthy, whose first alarm is right.",
    reproduced=at_least("precision", 0.85) & at_least("lower_end", 0.75),
    refuted=below("upper_end", 0.85),
    without_seeds="the ends of the interval over runs are judged.",
)
def precision(results: Results) -> Measured:
    return _measured("precision", results.doctor.precise)


@claim(
    "healthy",
    "Healthy scripts raise no alarm.",
    paper="at most 4 % of the healthy scripts",
    protocol="Fraction of held-out runs of healthy scripts with an error or a warning; its interval.",
    reproduced=at_most("alarmed", 0.04) & at_most("upper_end", 0.2),
    refuted=above("lower_end", 0.04),
    without_seeds="the ends of the interval over runs are judged.",
)
def healthy(results: Results) -> Measured:
    names = sorted({run.case for run in results.healthy if run.alarms})
    return _measured("alarmed", results.doctor.alarmed, f": {', '.join(names)}" if names else "")


def _measured(name: str, outcomes: Sequence[bool], more: str = "") -> Measured:
    """Return a fraction of runs with the ends of its interval; not measured where there is no run."""
    if not outcomes:
        return Measured("no such run")
    low, high = clopper_pearson(sum(outcomes), len(outcomes))
    numbers = {name: sum(outcomes) / len(outcomes), "lower_end": low, "upper_end": high}
    return Measured(fraction(outcomes) + more, numbers)


@claim(
    "per-step",
    "False alarms are rare.",
    paper="at most 1 in 1000 healthy steps",
    protocol="Errors and warnings of held-out runs of healthy scripts, for 1000 steps.",
    reproduced=at_most("rate", 1, "false alarms per 1000 steps"),
    without_seeds="a rate over all runs is judged.",
)
def per_step(results: Results) -> Measured:
    alarms, steps = sum(len(run.alarms) for run in results.healthy), sum(run.steps for run in results.healthy)
    rate = 1000 * alarms / max(steps, 1)
    return Measured(f"{alarms} in {steps:,} steps, {rate:.3f} in 1000", {"rate": rate})


@claim(
    "lead",
    "Causes that build up are found before the loss shows them.",
    paper="at least 5 steps ahead",
    protocol="Steps from the first alarm to the event (a loss 8 robust standard deviations above the 25 before it, or "
    "not finite), where the alarm is right, names a learning rate, attention logits or a second moment, and there is "
    "an event. Median of both halves of the seeds.",
    reproduced=at_least("median", 5, "median lead"),
    refuted=below("median", 0, "median lead"),
    without_seeds="the median over all runs is judged.",
)
def lead(results: Results) -> Measured:
    ahead = leads([*results.development, *results.held_out])
    if not ahead:
        return Measured("no run has both such a cause and an event")
    median = float(np.median(ahead))
    words = f"median {median:g} steps in {len(ahead)} runs, from {min(ahead)} to {max(ahead)}"
    return Measured(words, {"median": median, "runs": len(ahead)})


@claim(
    "baselines",
    "It is far ahead of what the schedule, or loss and gradient norm alone, can tell.",
    paper="at least 30 points ahead in top-1",
    protocol="Random forests on features of the development runs: the same scripts with other seeds, which favours "
    "them. Ahead: by how much more of the held-out faults the doctor is right than the better of the two; ends of the "
    "95 % interval of the difference, run by run.",
    reproduced=at_least("lower_end", 0.3),
    refuted=below("upper_end", 0.3) | at_most("ahead", 0.05),
    without_seeds="the ends of the interval over runs are judged.",
)
def baselines(results: Results) -> Measured:
    return _ahead(results, {name: known for name, (known, _) in results.baselines.items()})


@claim(
    "baselines-elsewhere",
    "It is far ahead of them on scripts that they were not fitted on.",
    paper="not asked for; the doctor was fitted on none of the scripts",
    protocol="As above, but each classifier is fitted without all runs that were made from the same healthy script: "
    "with another seed a script's loss and gradient norm look alike enough to recognise it.",
    reproduced=at_least("lower_end", 0.3),
    refuted=below("upper_end", 0.3) | at_most("ahead", 0.05),
    without_seeds="the ends of the interval over runs are judged.",
)
def baselines_elsewhere(results: Results) -> Measured:
    return _ahead(results, {name: new for name, (_, new) in results.baselines.items()})


def _ahead(results: Results, others: Mapping[str, Score]) -> Measured:
    """Return by how much more of the faults the doctor is right than the best of some others, run by run."""
    best = max(others.values(), key=lambda s: s.top1)
    ahead = np.array(results.doctor.first, float) - np.array(best.first, float)
    low, high = seed_interval(list(ahead))
    parts = [f"{name} {other.top1:.1%}" for name, other in others.items()]
    words = f"doctor {results.doctor.top1:.1%}, {', '.join(parts)}: ahead by {low:.1%} to {high:.1%}"
    return Measured(words, {"ahead": float(ahead.mean()), "lower_end": low, "upper_end": high})


@claim(
    "calibrated",
    "Its confidences are honest.",
    paper="confidence is calibrated",
    protocol="Overconfidence: confidence of the first alarm minus 1 if it is right, mean over all held-out runs with "
    "an alarm; ends of its 95 % interval.",
    reproduced=at_most("overconfidence", 0.1) & at_least("overconfidence", -0.1),
    refuted=above("lower_end", 0.1) | below("upper_end", -0.1),
    without_seeds="the ends of the interval over runs are judged.",
)
def calibrated(results: Results) -> Measured:
    said = confidences(results.held_out)
    if not said:
        return Measured("no alarm")
    gaps = [confidence - right for confidence, right in said]
    low, high = seed_interval(gaps)
    mean, right = float(np.mean([c for c, _ in said])), float(np.mean([r for _, r in said]))
    words = f"mean confidence {mean:.1%}, right {right:.1%} of {len(said)} times: {low:+.1%} to {high:+.1%} too sure"
    return Measured(words, {"overconfidence": float(np.mean(gaps)), "lower_end": low, "upper_end": high})


@claim(
    "overhead",
    "Watching costs little.",
    paper="at most 5 % of steps of 10 ms",
    protocol="steps of these scripts take about 1 ms: benchmarks/watch_overhead.py measures longer ones",
)
def overhead(results: Results) -> Measured:
    return Measured("not judged: the scripts last a second, which is what a watch costs once")


@claim(
    "peers",
    "It is far ahead of other tools.",
    paper="at least 30 points ahead in top-1",
    protocol="they need environments of their own: benchmarks/clinic.py runs them on the same scripts",
)
def peers(results: Results) -> Measured:
    return Measured("not measured here")


# --- the report --------------------------------------------------------------------------------------------------


def present(results: Results, claims: Mapping[str, ClaimResult]) -> Presentation:
    """Put figures, tables and summary together."""
    doctor = results.doctor
    summary = (
        f"On {len(doctor.first)} held-out runs with a known fault the first cause is right in {doctor.top1:.0%} and "
        f"one of the first three in {doctor.top3:.0%}; {sum(doctor.alarmed)} of {len(doctor.alarmed)} healthy runs "
        f"raise an alarm. Top-1: {claims['baselines'].text}."
    )
    picture = _comparison(results)
    return Presentation(
        summary,
        [
            Text(
                f"{len(cases())} scripts, {len(faults())} of them with a fault; a run takes a part of them. "
                "`python -m poise.studies.clinic export FOLDER` writes them all, with their labels. Verdicts are "
                "of the held-out seeds. Kinds of misses that seed 0 showed were told to those who write the doctor's "
                "rules, the scripts were not: scripts that nobody saw may be harder.",
                title="The clinic",
            ),
            picture,
            _tools(results),
            _confusion(results),
            _wrong("Faults with another first cause", results, faulty=True),
            _wrong("Healthy scripts with an alarm", results, faulty=False),
            _reliability(results),
            _costs(results),
        ],
        picture.figure,
    )


def _scores(results: Results) -> dict[str, Score]:
    rows = {
        "doctor, held-out seeds": results.doctor,
        "doctor, development seeds": score(map(answer, results.development)),
    }
    for name, (known, new) in results.baselines.items():
        rows |= {name: known, f"{name}, scripts not seen": new}
    return rows


def _comparison(results: Results) -> Figure:
    rows = _scores(results)
    parts = {"first": [s.top1 for s in rows.values()], "among the first three": [s.top3 for s in rows.values()]}
    colours = ("#0072b2", "#56b4e9")
    bars = [
        go.Bar(name=name, x=list(rows), y=values, marker_color=colour)
        for (name, values), colour in zip(parts.items(), colours, strict=True)
    ]
    figure = go.Figure(bars).update_layout(barmode="group", yaxis_title="fraction of the faults", yaxis_range=[0, 1])
    alt = "; ".join(f"{name}: first {s.top1:.0%}, among three {s.top3:.0%}" for name, s in rows.items())
    return Figure(
        "How often the right cause is named", figure, alt, "Runs with a known fault, held-out seeds but for one."
    )


def _tools(results: Results) -> Table:
    rows: list[list[object]] = [
        [name, s.top1, s.top3, s.precision, float(np.mean(s.silent)), s.false_alarms]
        for name, s in _scores(results).items()
    ]
    columns = ["who", "top-1", "top-3", "precision", "faults without alarm", "healthy runs alarmed"]
    return Table("Scores", columns, rows, "Fractions of runs. The classifiers were fitted on the development seeds.")


def _confusion(results: Results) -> Figure:
    """Return the confusion matrix: the best answer of each fault against the first cause, on the held-out seeds."""
    pairs: Counter[tuple[str, str]] = Counter()
    for run in results.held_out:
        case = cases()[run.case]
        said = run.alarms[0].cause if run.alarms else "no alarm"
        pairs[_truth(case, said), said] += 1
    truths, words = (sorted({pair[i] for pair in pairs}) for i in (0, 1))
    counts = [[pairs[truth, word] for word in words] for truth in truths]
    figure = go.Figure(go.Heatmap(z=counts, x=words, y=truths, colorscale="Blues", showscale=False))
    figure.update_layout(xaxis_title="first cause", yaxis_title="truth", height=max(300, 18 * len(truths) + 150))
    wrong = ", ".join(f"{t} as {w}" for t, w in pairs if t != w and (t, w) != ("healthy", "no alarm"))
    caption = "Runs by truth and first cause. Where the first cause is one of several right ones, it is the truth."
    return Figure("Confusion matrix", figure, f"Confused: {wrong or 'nothing'}.", caption)


def _truth(case: Case, said: str) -> str:
    if case.is_healthy:
        return "healthy"
    return said if said in case.causes else case.causes[0]


def _wrong(title: str, results: Results, faulty: bool) -> Table:
    rows: list[list[object]] = []
    for run in results.held_out:
        case, said = cases()[run.case], answer(run).causes
        if case.is_healthy == faulty or (is_right(case, said[:1]) if faulty else not said):
            continue
        confidence = f"{run.alarms[0].probability:.0%}" if run.alarms else ""
        row = [run.case, run.seed, case.what, ", ".join(said[:3]) or "no alarm", confidence]
        rows.append([*row, ", ".join(case.causes)] if faulty else row)
    columns = ["script", "seed", "what was done", "first three causes", "confidence", *(["right"] if faulty else [])]
    return Table(title, columns, rows, "Held-out seeds.")


def _reliability(results: Results) -> Table:
    said = confidences([*results.development, *results.held_out])
    rows: list[list[object]] = []
    for low, high in itertools.pairwise(BINS):
        inside = [(c, right) for c, right in said if low <= c < high or (high == BINS[-1] == c)]
        if inside:
            mean = float(np.mean([c for c, _ in inside]))
            rows.append([f"{low:.0%} to {high:.0%}", len(inside), mean, fraction([right for _, right in inside])])
    columns = ["confidence", "alarms", "mean confidence", "right"]
    return Table("Reliability", columns, rows, "The first alarm of every run, all seeds.")


def _costs(results: Results) -> Table:
    runs = [*results.development, *results.held_out]
    whole, watch = np.array([r.cpu_seconds for r in runs]), np.array([r.watch_seconds for r in runs])
    rows: list[list[object]] = [
        ["the whole process without imports", *np.percentile(whole, [10, 50, 90])],
        ["the watch, during the steps", *np.percentile(watch, [10, 50, 90])],
    ]
    caption = "CPU seconds a run: the tenth, half and nine tenths of the runs are below."
    return Table("What watching costs", ["part", "10 %", "50 %", "90 %"], rows, caption)


STUDY = Study(
    slug="training-doctor",
    title="Does the doctor name the cause of a failed training run, and leave healthy ones alone?",
    room="doctor",
    paper=Paper("Targets of the training doctor, written down before the run", "poise", 2026),
    seeds={"tiny": 1, "default": 4, "full": 6},
    experiment=experiment,
    claims=(
        first,
        among_three,
        precision,
        healthy,
        per_step,
        lead,
        baselines,
        baselines_elsewhere,
        calibrated,
        overhead,
        peers,
    ),
    present=present,
)
