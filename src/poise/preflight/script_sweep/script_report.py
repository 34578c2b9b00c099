"""The report of `poise preflight`: the learning rates at which a script trains, at its size and at a larger one."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from poise.doctor.masking import Masking
from poise.preflight.script_sweep.script_sweep import EPS_SHRINK, GRADIENT, LOGIT, ScriptPlan, bounds_logits
from poise.preflight.sweeps.lr_crossing import LRCrossing, lr_crossing
from poise.preflight.sweeps.lr_report import lr_report
from poise.preflight.sweeps.max_trainable_lr import max_trainable_lr
from poise.preflight.sweeps.sweep import SweepResult
from poise.report import Figure, Report, Table, Text, line_chart
from poise.report.words import number

THRESHOLD = 1e4
_EPS_LIMIT = 0.5


def script_report(plan: ScriptPlan, results: Mapping[str, SweepResult], scale: float, measure: str) -> Report:
    """Return the report of the sweeps of a script.

    Args:
        plan: what was run.
        results: ``""`` -> the sweep of the unchanged script, and remedy -> the sweep under it.
        scale: how many times the largest size is forecast.
        measure: the command line that would measure what a bound on the logits changes.
    """
    crossings = {name: _crossing(result, scale) for name, result in results.items()}
    plain = results[""]
    sentences = [
        _stable(plan, plain),
        *_logits(plan, plain, crossings[""], scale),
        *(_moved(name, plan, results[name], crossings[""], crossing) for name, crossing in crossings.items() if name),
        *_epsilon(plain),
    ]
    named = {_label(plan, name, size): result.curve(size) for name, result in results.items() for size in result.sizes}
    curves = lr_report(named)
    masking = Masking(plan.args)  # reports are forwarded to others
    script = masking.text(plan.script)
    report = Report(
        f"Preflight of {script}",
        " ".join(sentences),
        blocks=curves.blocks,
        meta={"script": script, "args": masking.args, "lrs": list(plain.lrs), "seeds": list(plain.seeds)},
        verdict=_verdict(plain),
    )
    picture = _logit_figure(plan, results, crossings)
    if picture is not None:
        report.add(picture)
    if crossings[""] is not None and len(results) == 1 and math.isfinite(crossings[""].lr):
        report.add(
            Text(f"What a bound on the attention logits changes is measured by\n\n    {masking.text(measure)}", "Next")
        )
    notices = _notices(plan, results)
    if notices:
        report.add(Text("\n".join(f"- {notice}" for notice in notices), title="Limits"))
    report.add(_runs_table(plan, results))
    return report.add(Text(_METHOD, title="How it was measured"))


_METHOD = f"""\
Every run is the unmodified script in a process of its own, watched from outside. Its loss is the mean training loss
over the last tenth of the steps; the loss at initialisation is the first one. A run that ended with an error, or
was stopped early (three losses in a row that are not finite, or a long time above the first loss by a thousand times
all changes before) counts as diverged. *Stable up to* names the largest learning rate at which every seed, here and at
all rates from the best one on, kept half of what the best learning rate gains. Signals are medians over the second half
of a run, of the layer that is worst. The forecast is a line through the logarithms of signal and size, at each learning
rate by itself;
its interval comes from leaving one size out at a time, and is not a confidence interval. In the paper every run with
attention logits above {THRESHOLD:.0e} diverged; small and short runs need not. (Wortsman et al., ICLR 2024,
arXiv:2309.14322.)"""


def _crossing(result: SweepResult, scale: float) -> LRCrossing | None:
    largest = result.sizes[-1]
    return None if largest is None else lr_crossing(result, LOGIT, scale * largest, THRESHOLD)


def _verdict(result: SweepResult) -> str:
    edge = _edge(result)[0]
    return "no stable learning rate" if edge is None else f"stable up to lr {edge:g}"


def _edge(result: SweepResult) -> tuple[float | None, float | None, int | None]:
    """The largest learning rate at which every size trains, the next one, and the size that decides."""
    edges = [(size, max_trainable_lr(result.curve(size))) for size in result.sizes]
    size, edge = min(edges, key=lambda item: -math.inf if item[1].lr is None else item[1].lr)
    return edge.lr, edge.first_failing, size


def _stable(plan: ScriptPlan, result: SweepResult) -> str:
    lr, failing, size = _edge(result)
    at = "" if size is None else f" (decided by {plan.size_name} {size})"
    if lr is None:
        return f"No stable learning rate between {result.lrs[0]:g} and {result.lrs[-1]:g}{at}."
    if failing is None:
        return f"Stable up to lr {lr:g}, the end of the grid."
    return f"Stable up to lr {lr:g}; fails at {failing:g}{at}."


def _logits(plan: ScriptPlan, result: SweepResult, crossing: LRCrossing | None, scale: float) -> list[str]:
    if not any(LOGIT in point.signals for point in result.points):
        return []
    if crossing is None:
        few = len(result.sizes) < 3
        why = "a forecast needs at least three sizes (--set)" if few else "not every size has them at one learning rate"
        return [f"Attention logits were recorded, but {why}."]
    return [f"At {scale:g}x the {plan.size_name} ({crossing.size:g}) attention logits {_will_cross(crossing)}."]


def _will_cross(crossing: LRCrossing) -> str:
    largest = max(row[0] for row in crossing.expected)
    if math.isinf(crossing.lr):
        low, last = crossing.interval[0], crossing.lrs[-1]
        known = f"will stay below {crossing.threshold:.0e} up to lr {last:g} (at most {number(largest)} expected"
        return known + (")" if math.isinf(low) else f"; with one size left out they cross near lr {low:.2g})")
    low, high = crossing.interval
    end = f"{high:.2g}" if math.isfinite(high) else f"beyond {crossing.lrs[-1]:g}"
    at = "at or below" if crossing.lr <= crossing.lrs[0] else "near"
    return f"will cross {crossing.threshold:.0e} {at} lr {crossing.lr:.2g} (interval {low:.2g} to {end})"


def _moved(
    name: str, plan: ScriptPlan, result: SweepResult, before: LRCrossing | None, after: LRCrossing | None
) -> str:
    lr = _edge(result)[0]
    stable = "no stable learning rate" if lr is None else f"stable up to lr {lr:g}"
    if before is not None and bounds_logits(name.split("+")):
        return f"With {name}: {stable}, and the norm bounds attention logits at any size."
    if before is None or after is None:
        return f"With {name}: {stable}."
    if math.isinf(after.lr):
        return f"With {name}: {stable}, and attention logits {_will_cross(after)}."
    return f"{name} moves that to lr {after.lr:.2g}: {stable}; attention logits {_will_cross(after)}."


def _epsilon(result: SweepResult) -> list[str]:
    shrunk = [p for p in result.points if p.signals.get(EPS_SHRINK, 1.0) < _EPS_LIMIT]
    if not shrunk:
        return []
    lowest = min(point.lr for point in shrunk)
    return [f"From lr {lowest:g} on, Adam's epsilon reduces some layer's updates by more than half: make it smaller."]


def _label(plan: ScriptPlan, name: str, size: int | None) -> str:
    words = [] if size is None else [f"{plan.size_name} {size}"]
    return ", ".join([*words, *([name] if name else [])]) or "all runs"


def _logit_figure(
    plan: ScriptPlan, results: Mapping[str, SweepResult], crossings: Mapping[str, LRCrossing | None]
) -> Figure | None:
    lines, bands = {}, {}
    for name, result in results.items():
        for size in result.sizes:
            if any(LOGIT in p.signals for p in result.points if p.size == size):
                middle = np.exp(np.log(result.signal(LOGIT, size)).mean(axis=1))
                lines[_label(plan, name, size)] = (np.array(result.lrs), middle)
        crossing = crossings[name]
        if crossing is not None:
            label = f"{_label(plan, name, int(crossing.size))}, forecast"
            middle, low, high = np.array(crossing.expected).T
            lines[label] = (np.array(crossing.lrs), middle)
            bands[label] = (np.array(crossing.lrs), low, high)
    if not lines:
        return None
    figure = line_chart(
        "Largest attention logit over learning rate", lines, "learning rate", "largest |logit|", log_y=True, bands=bands
    )
    figure.figure.update_xaxes(type="log", exponentformat="power")
    if crossings[""] is not None:
        figure.figure.add_hline(y=THRESHOLD, line_dash="dot")
    return figure


def _notices(plan: ScriptPlan, results: Mapping[str, SweepResult]) -> list[str]:
    out = []
    for name, result in results.items():
        failed = [p for p in result.points if p.signals.get("exit_code", 0)]
        out += [
            f"{_label(plan, name, p.size)}, lr {p.lr:g}, seed {p.seed} ended with exit code "
            f"{p.signals['exit_code']:.0f} after {p.signals['steps']:.0f} steps; it counts as diverged."
            for p in failed
        ]
        if len(result.seeds) > 1 and all(_seeds_agree(result, size) for size in result.sizes):
            out.append("The seeds change nothing. Does the script take {seed}, or draw from torch, numpy or random?")
    if len(results[""].seeds) == 1:
        out.append("One seed does not show the effect of chance: add --seeds 3.")
    return out


def _seeds_agree(result: SweepResult, size: int | None) -> bool:
    losses = result.curve(size).losses
    return bool(np.isfinite(losses).any() and np.array_equal(losses, losses[:, :1].repeat(losses.shape[1], 1), True))


def _runs_table(plan: ScriptPlan, results: Mapping[str, SweepResult]) -> Table:
    columns = ["run", "lr", "seed", "loss", "first loss", "largest logit", "gradient norm", "stopped at step"]
    signals = (LOGIT, GRADIENT)
    rows = [
        (_label(plan, name, p.size), p.lr, p.seed, p.loss, p.init_loss, *map(p.signals.get, signals), p.stopped_at)
        for name, result in results.items()
        for p in result.points
    ]
    finite = [[None if isinstance(x, float) and not math.isfinite(x) else x for x in row] for row in rows]
    return Table("Runs", columns, finite, "An empty loss is not finite, or of a run that was stopped early.")
