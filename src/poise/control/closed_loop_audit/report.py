"""The report of the audit of a closed loop."""

from __future__ import annotations

import math
from importlib.metadata import version

import numpy as np
import torch

from poise.control.closed_loop_audit.facts import ClosedLoopFacts
from poise.control.closed_loop_audit.rules import RULES
from poise.report import Figure, Report, Table, Text, line_chart, scatter_chart
from poise.report.block import Block
from poise.rules import findings_of
from poise.tools.number import number


def closed_loop_report(facts: ClosedLoopFacts) -> Report:
    """Return the report.

    Args:
        facts: what was measured.
    """
    blocks: list[Block] = [_goal_table(facts)]
    if facts.margins:
        blocks += [_margin_table(facts), Text(_first_to_break(facts), "What breaks it first")]
    if facts.region is not None:
        blocks += [_region_table(facts), _region_figure(facts)]
    if facts.paths.shape[1] > 1:
        blocks.append(_distance_figure(facts))
    if facts.model is not None:
        blocks.append(_model_table(facts))
    if facts.hull is not None:
        blocks.append(_hull_table(facts))
    blocks.append(Text(_limits(facts), "What was not checked"))
    return Report(
        "Audit of a closed loop",
        _summary(facts),
        findings_of(RULES, facts),
        blocks,
        meta={
            "states": facts.n,
            "inputs": facts.m,
            "dt": facts.dt,
            "periods": facts.steps,
            "starts": 0 if facts.region is None else len(facts.region.states),
            "seed": facts.seed,
            "torch": torch.__version__,
            "poise": version("poise"),
        },
        verdict=_verdict(facts),
    )


def _verdict(facts: ClosedLoopFacts) -> str:
    if facts.local is None:
        return "no equilibrium near the goal"
    where = "at the goal" if facts.offset == 0 else "beside the goal"
    if facts.local.verdict == "unstable":
        return f"unstable {where}"
    if facts.local.verdict == "undecided":
        return f"undecided {where}"
    part = facts.region is not None and facts.region.nearest_failing is not None
    return f"stable {where}" + (", not in all of the box" if part else "")


def _summary(facts: ClosedLoopFacts) -> str:
    parts = []
    if facts.local is None:
        parts.append("The loop does not rest near its goal.")
    elif facts.local.verdict == "unstable":
        parts.append(f"At its equilibrium the loop is unstable (rate {number(facts.growth, 3)} per unit of time).")
    elif facts.local.verdict == "undecided":
        parts.append("The linearisation at the equilibrium does not decide. " + " ".join(facts.local.notes[:1]))
    else:
        parts.append(f"Near its equilibrium the loop returns at rate {number(-facts.growth, 3)} per unit of time.")
    if facts.region is not None:
        low, high = facts.region.interval
        parts.append(
            f"{100 * facts.region.fraction:.3g} % of the box come to it (95 % interval {100 * low:.3g} to "
            f"{100 * high:.3g} %, {len(facts.region.states)} starts)."
        )
    if facts.margins:
        parts.append(_first_to_break(facts))
    return " ".join(parts)


def _goal_table(facts: ClosedLoopFacts) -> Table:
    rows: list[list[object]] = [["distance of the equilibrium from the goal, in half widths of the box", facts.offset]]
    local = facts.local
    if local is not None:
        rows += [
            ["growth rate per unit of time, from eigenvalues", facts.growth],
            ["largest absolute eigenvalue, per period", local.radius],
        ]
        if facts.measured_rate is not None:
            low, high = facts.measured_rate.ci
            rows += [
                ["growth rate per unit of time, from a perturbation", -facts.measured_rate.rate / facts.dt],
                ["its 95 % interval, low", -high / facts.dt],
                ["its 95 % interval, high", -low / facts.dt],
            ]
        if local.non_normality is not None:
            rows.append(["largest growth of a perturbation before it decays", local.non_normality.transient_growth])
    return Table("At the goal", ["quantity", "value"], rows, "Of the sampled loop; negative rates decay.")


def _margin_table(facts: ClosedLoopFacts) -> Table:
    rows: list[list[object]] = [
        [f"input {i}", m.gain, m.gain_low, m.phase, m.phase_frequency, m.delay, m.delay / facts.dt]
        for i, m in enumerate(facts.margins)
    ]
    columns = ["where", "gain up to", "gain down to", "phase (degrees)", "at frequency", "delay", "in periods"]
    factor = facts.period_factor
    period = "" if factor is None else f" The sampling period can be {number(factor, 3)} times as long."
    caption = f"Of the sampled, linearised loop, for each input with the others closed.{period}"
    return Table("Margins", columns, rows, caption)


def _first_to_break(facts: ClosedLoopFacts) -> str:
    changes: list[tuple[float, str]] = []
    for i, m in enumerate(facts.margins):
        changes += [
            (math.log(m.gain), f"a gain {number(m.gain, 3)} times as large on input {i}"),
            (
                -math.log(m.gain_low) if m.gain_low > 0 else math.inf,
                f"{number(m.gain_low, 3)} times the gain on input {i}",
            ),
            (math.log1p(m.delay / facts.dt), f"a delay of {number(m.delay / facts.dt, 3)} periods on input {i}"),
        ]
    if facts.period_factor is not None:
        changes.append(
            (math.log(facts.period_factor), f"a sampling period {number(facts.period_factor, 3)} times as long")
        )
    size, words = min(changes)
    if math.isinf(size):
        return "No change of gain, delay or sampling period that was tried breaks the linearised loop."
    return f"Of changes of gain, delay and sampling period, the smallest that breaks the linearised loop is {words}."


def _region_table(facts: ClosedLoopFacts) -> Table:
    region = facts.region
    assert region is not None
    rows: list[list[object]] = [
        ["attracted fraction of the box", region.fraction],
        ["95 % interval, low", region.interval[0]],
        ["95 % interval, high", region.interval[1]],
        ["distance of the nearest failing start, in half widths of the box", region.nearest_distance],
    ]
    if region.nearest_failing is not None:
        rows += [[f"nearest failing start, entry {i}", float(x)] for i, x in enumerate(region.nearest_failing)]
    if region.level is not None:
        rows += [
            ["largest sampled level of the linear loop's cost", region.level],
            ["starts inside it that were tried last, all attracted", region.checked],
            ["what ends it", region.limited_by],
        ]
    if facts.saturated is not None:
        rows += [
            ["fraction of inputs at their limits", facts.saturated],
            ["the same in runs that fail", facts.saturated_failing],
        ]
    caption = "The level set is sampled: no start inside it was found to fail. It is not certified."
    return Table("In the box", ["quantity", "value"], rows, caption if region.level is not None else None)


def _region_figure(facts: ClosedLoopFacts) -> Figure:
    region = facts.region
    assert region is not None
    points, good = region.states.numpy(), region.attracted.numpy()
    second = points[:, 1] if facts.n > 1 else np.zeros(len(points))
    groups = {"comes to the goal": good, "does not": ~good}
    series = {name: (points[pick, 0], second[pick]) for name, pick in groups.items() if pick.any()}
    title = "Starts in the box" if facts.n <= 2 else "Starts in the box, first two entries of the state"
    return scatter_chart(title, series, "entry 0", "entry 1" if facts.n > 1 else "")


def _distance_figure(facts: ClosedLoopFacts) -> Figure:
    region = facts.region
    assert region is not None
    times = np.linspace(0, facts.steps * facts.dt, facts.paths.shape[1])
    half = (region.states.amax(0) - region.states.amin(0)).numpy() / 2 + 1e-300
    centre = facts.paths[:, -1][region.attracted[: len(facts.paths)].numpy()]
    goal = centre.mean(0) if len(centre) else facts.paths[:, 0].mean(0)
    distance = np.linalg.norm((facts.paths - goal) / half, axis=-1)
    distance = np.where(np.isfinite(distance), distance, np.nan)
    series = {}
    for name, pick in (("comes to the goal", True), ("does not", False)):
        for i in np.flatnonzero(region.attracted[: len(facts.paths)].numpy() == pick)[:3]:
            series[f"start {i}, {name}"] = (times, np.maximum(distance[i], 1e-8))
    return line_chart("Distance from the goal", series, "time", "distance in ranges of the starts", log_y=True)


def _model_table(facts: ClosedLoopFacts) -> Table:
    model = facts.model
    assert model is not None
    rows: list[list[object]] = [
        ["coefficient of determination of predictions", model.r2, 1.0],
        ["relative error of derivatives (median)", model.derivative_error, 0.0],
        ["growth rate at the goal per unit of time", model.growth, facts.growth],
        [
            "fraction of starts near the goal at the end",
            model.attracted,
            None if facts.region is None else facts.region.fraction,
        ],
        ["fraction of starts attracted with the model only", model.misled, 0.0],
    ]
    return Table("The learned model in the place of the plant", ["quantity", "model", "plant"], rows)


def _hull_table(facts: ClosedLoopFacts) -> Table:
    hull = facts.hull
    assert hull is not None
    rows: list[list[object]] = [
        ["runs looked at", hull.runs],
        ["fraction that started outside", hull.outside],
        ["fraction that left", hull.left],
        ["median time of leaving", hull.first_exit],
        ["fraction of these that failed", hull.left_failing],
    ]
    return Table("Convex hull of the training states", ["quantity", "value"], rows)


def _limits(facts: ClosedLoopFacts) -> str:
    lines = [
        "**Between samples.** Starts that were not simulated may behave differently. Nothing here is a proof.",
        "**Disturbances and noise.** Runs are undisturbed and the controller sees the exact state.",
        *(f"**Not checked.** {text}" for text in facts.not_checked),
    ]
    return "\n".join(f"- {line}" for line in lines)
