"""The report of :class:`BinomialEvidence`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from poise.evidence.intervals import clopper_pearson
from poise.report import Code, Figure, Report, Table, Text

if TYPE_CHECKING:
    from poise.evidence.binomial_evidence import BinomialEvidence


def binomial_report(fitted: BinomialEvidence) -> Report:
    """Return Bayes factors, models, estimates and group effects."""
    factors = [[name, bf.log10, str(bf)] for name, bf in fitted.inclusion_bf_.items()]
    models = [[name, log, fitted.posterior_model_probs_[name]] for name, log in fitted.log_marginal_.items()]
    estimates = [[name, e.mean, e.low, e.high] for name, e in fitted.estimate_.items()]
    effect, bf = fitted.estimate_["effect"], fitted.inclusion_bf_["effect"]
    summary = (
        f"{len(fitted.groups_)} groups. Bayes factor of an effect: {bf}. Estimate of the rate: {effect}. "
        f"Bayes factor of a spread between groups: {fitted.inclusion_bf_['spread']}."
    )
    blocks: list[Text | Table | Figure | Code] = [
        Table("Bayes factors", ["factor", "log10", "models with it against models without"], factors),
        shrinkage_figure(fitted),
        Table("Estimates under the full model", ["parameter", "mean", "low", "high"], estimates, "95 % intervals."),
        Table("Models", ["model", "log marginal likelihood", "posterior probability"], models),
    ]
    return Report("Evidence from counts", summary, blocks=blocks)


def shrinkage_figure(fitted: BinomialEvidence) -> Figure:
    """Draw each group's own share beside its estimate under the full model."""
    order = sorted(fitted.group_effects_, key=lambda g: g.raw)
    x = np.arange(1, len(order) + 1)
    names = [str(g.group) for g in order]
    own = [clopper_pearson(round(g.raw * g.trials), g.trials) for g in order]
    figure = go.Figure()
    alone = [g.raw for g in order], own
    together = [g.estimate.mean for g in order], [(g.estimate.low, g.estimate.high) for g in order]
    for name, (middle, ends), colour, shift in (
        ("alone", alone, "#d55e00", -0.18),
        ("with the others", together, "#0072b2", 0.18),
    ):
        low, high = np.array(ends).T
        bars = {"type": "data", "array": high - middle, "arrayminus": middle - low, "width": 0, "thickness": 1}
        marker = {"color": colour, "size": 5}
        figure.add_scatter(x=x + shift, y=middle, error_y=bars, mode="markers", marker=marker, name=name, text=names)
    figure.add_hline(y=fitted.null, line_dash="dot")
    figure.update_layout(xaxis_title="group, by its own share", yaxis_title="share in the direction of the effect")
    ranges = [f"from {min(v):.3f} to {max(v):.3f}" for v in (alone[0], together[0])]
    alt = f"Shares of {len(order)} groups run {ranges[0]} taken alone and {ranges[1]} when estimated together."
    caption = "95 % intervals. Estimated together, groups with few trials move towards the others."
    return Figure("Each group alone and with the others", figure, alt, caption)
