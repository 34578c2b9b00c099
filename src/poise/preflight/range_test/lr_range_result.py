"""The result of a learning-rate range test, and its report."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from poise.preflight.range_test.lr_suggestion import RULES, LRRangeCurve, LRSuggestion, NoSuggestion, Rule, suggest_lr
from poise.report import Code, Figure, Report, Table, Text, line_chart


@dataclass(frozen=True, slots=True)
class LRRangeTest:
    """The curves of a range test.

    Args:
        curves: one for each weight decay and momentum, in the order in which they were asked for.
        notes: what limits the test, in sentences.
    """

    curves: tuple[LRRangeCurve, ...]
    notes: tuple[str, ...] = ()

    def suggest(self, rule: Rule = "minimum/10") -> LRSuggestion:
        """Return the learning rates that a rule reads from the best curve.

        With several weight decays that is the largest one under which the loss comes, within the noise, as low as under
        any other.

        ================  =============================================================================================
        rule              ``lr_max``
        ================  =============================================================================================
        ``valley``        two thirds, in the logarithm of the learning rate, of the way from the first tenth to the
                          bottom of the deepest fall of the smoothed loss
        ``minimum/10``    a tenth of that with the lowest smoothed loss
        ``steepest``      that at which the smoothed loss falls fastest in the logarithm of the learning rate
        ``divergence/3``  a third of the last learning rate at which the loss was within its noise of the lowest,
                          before it ended the run
        ================  =============================================================================================

        None chooses one of the first or last five points, and all of them need a loss that falls and stops falling
        within the range; otherwise there is no suggestion. ``minimum/10`` is the default because on the problems made
        to choose among them it failed least often. On 20 others, 3 seeds each, it suggested in 48 of 60 tests; training
        worked in all 48 (``valley``: 52 of 52, ``steepest``: 47 of 52, ``divergence/3``: 38 of 43; see
        ``benchmarks/lr_range_suggestion.py``). A deep network without normalisation is harder: ``valley`` trained in 15
        of 24 seeds; over the 80 seeds of the study ``disciplined-hyperparameters``, ``minimum/10`` trained in 73 and
        ``divergence/3`` in 58. ``divergence/3`` aims at the largest learning rate that is stable, which
        schedules with a short peak need, and is the least safe.

        Args:
            rule: one of these.

        Raises:
            NoSuggestion: if the curve allows none; the message says why.
            ValueError: if ``rule`` is unknown.

        References:
            Smith, "Cyclical learning rates for training neural networks", 2017, arXiv:1506.01186; Smith, 2018,
            arXiv:1803.09820.
        """
        return suggest_lr(self.best_curve(), rule)

    def best_curve(self) -> LRRangeCurve:
        """Return the curve of the largest weight decay that lets the loss fall as low as any other does.

        Raises:
            NoSuggestion: if every run had a loss that is not finite at its first point.
        """
        usable = [curve for curve in self.curves if len(curve.lrs)]
        if not usable:
            raise NoSuggestion(f"diverged at lr={self.curves[0].stopped_at:g}, the first point")
        lowest = min(usable, key=lambda curve: curve.smoothed.min())
        good = [c for c in usable if c.smoothed.min() <= lowest.smoothed.min() + lowest.noise]
        return max(good, key=lambda c: (c.weight_decay or 0.0, -c.smoothed.min()))

    def report(self) -> Report:
        """Return the curves, their zones and what each rule suggests, with one figure per weight decay."""
        blocks: list[Figure | Table | Text | Code] = []
        for _, group in itertools.groupby(self.curves, key=lambda curve: curve.weight_decay):
            drawn = [curve for curve in group if len(curve.lrs)]
            if drawn:
                blocks.append(_figure(drawn))
        blocks += [_suggestions(self), _zones(self)]
        if self.notes:
            blocks.append(Text(" ".join(self.notes), title="Notes"))
        return Report("Learning-rate range test", _summary(self), blocks=blocks)


def _summary(test: LRRangeTest) -> str:
    try:
        found = test.suggest()
    except NoSuggestion as reason:
        return f"No learning rate: {reason}."
    with_decay = "" if found.weight_decay is None else f" with weight decay {found.weight_decay:g}"
    return f"Train with learning rates up to {found.lr_max:.3g}{with_decay}: {found.reason}."


def _figure(curves: list[LRRangeCurve]) -> Figure:
    lines = {}
    for curve in curves:
        suffix = "" if curve.momentum is None else f", momentum {curve.momentum:g}"
        lines[f"training{suffix}"] = (curve.lrs, curve.train)
        if curve.val is not None:
            lines[f"validation{suffix}"] = (curve.lrs, curve.val)
        lines[f"smoothed{suffix}"] = (curve.lrs, curve.smoothed)
    decay = curves[0].weight_decay
    title = "Loss over learning rate" + ("" if decay is None else f", weight decay {decay:g}")
    markers = _markers(curves[0]) if len(curves) == 1 else None
    positive = all((np.asarray(y) > 0).all() for _, y in lines.values())
    figure = line_chart(title, lines, "learning rate", "loss", log_y=positive, markers=markers)
    figure.figure.update_xaxes(type="log", exponentformat="power")
    figure.figure.for_each_annotation(lambda note: note.update(x=math.log10(note.x)))  # as a log axis needs
    return figure


def _markers(curve: LRRangeCurve) -> dict[str, float]:
    found: dict[str, float] = {}
    for rule in RULES:
        try:
            found[rule] = suggest_lr(curve, rule).lr_max
        except NoSuggestion:
            continue  # the table gives the reason
    return found


def _suggestions(test: LRRangeTest) -> Table:
    rows: list[list[object]] = []
    for curve in test.curves:
        for rule in RULES:
            try:
                found = suggest_lr(curve, rule)
                rows.append([curve.weight_decay, curve.momentum, rule, found.lr_min, found.lr_max, found.reason])
            except NoSuggestion as reason:
                rows.append([curve.weight_decay, curve.momentum, rule, None, None, str(reason)])
    columns = ["weight decay", "momentum", "rule", "lr_min", "lr_max", "reason"]
    return Table("Suggestions", columns, rows, "lr_min is where a 1cycle schedule starts.")


def _zones(test: LRRangeTest) -> Table:
    rows: list[list[object]] = []
    for curve in test.curves:
        points = zip(curve.lrs, curve.zones, strict=True)
        for zone, part in itertools.groupby(points, key=lambda point: point[1]):
            lrs = [float(lr) for lr, _ in part]
            rows.append([curve.weight_decay, curve.momentum, zone, lrs[0], lrs[-1]])
    columns = ["weight decay", "momentum", "zone", "from lr", "to lr"]
    caption = (
        "By the slopes of the losses over each decade. Underfit: the loss still falls, raise the learning rate "
        "or lower the decay. Balance: flat. Overfit: validation loss rises while training loss falls. "
        "Diverging: both rise."
    )
    return Table("Zones", columns, rows, caption)
