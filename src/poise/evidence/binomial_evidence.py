"""Hierarchical Bayes factors for counts: an effect, a bias, a spread between groups."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from scipy import special
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from poise.evidence import _checks
from poise.evidence.bayes_factor import BayesFactor
from poise.evidence.estimate import Estimate
from poise.evidence.intervals import clopper_pearson
from poise.evidence.priors import BetaPrior, GammaPrior, SdPrior
from poise.evidence.quadrature import (
    Cells,
    Floats,
    Integral,
    Quadrature,
    group_log_likelihood,
    group_moments,
    integrate,
)
from poise.report import Code, Figure, Report, Table, Text

EFFECT, BIAS, SPREAD = "effect", "bias", "spread"
NULL_MODEL = "null"


@dataclass(frozen=True, slots=True)
class GroupEffect:
    """The estimate of one group, alone and together with the others.

    Args:
        group: its label.
        trials: its number of trials.
        raw: proportion of successes in the direction of the effect, this group alone.
        estimate: posterior of the same probability under the full model, pulled towards the other groups.
    """

    group: Any
    trials: int
    raw: float
    estimate: Estimate


class BinomialEvidence(BaseEstimator):
    """Bayes factors for an effect, a bias and a spread in grouped binomial counts, without sampling.

    With group k, effect ``theta``, bias ``alpha`` and deviations ``g_k ~ N(0, sd^2)``, all on the logit scale:

        P(success | first condition)  = expit(logit alpha + logit theta + g_k)
        P(success | second condition) = expit(logit alpha - logit theta - g_k)

    Without conditions there is no bias: P(success) = expit(logit theta + g_k). Every combination of {effect, bias,
    spread} present or absent is a model with the same prior probability. Marginal likelihoods leave the binomial
    coefficients out (they cancel in every Bayes factor) and come from deterministic quadrature: the same data give the
    same bits.

    Args:
        effect_prior: prior of ``theta`` where there is an effect.
        bias_prior: prior of ``alpha`` where there is a bias.
        sd_prior: prior of ``sd`` where groups differ, on the logit scale.
        null: value of ``theta`` and ``alpha`` where there is none, in (0, 1); with conditions it must be 0.5.
        quadrature: ``"auto"`` or a :class:`Quadrature`.

    Attributes:
        log_marginal_: log marginal likelihood by model; a model is named after its parts, for example
            ``"effect+spread"``.
        posterior_model_probs_: posterior probability by model.
        inclusion_bf_: :class:`BayesFactor` by factor: models with it against models without.
        estimate_: :class:`Estimate` of ``"effect"``, ``"bias"``, ``"sd"`` and ``"heterogeneity"`` (expit(sd) - 0.5)
            under the full model.
        group_effects_: :class:`GroupEffect` per group under the full model, in order of first appearance.
        condition_levels_: the first and the second condition; ``None`` without.
        quadrature_change_: largest change of a log marginal likelihood at the last refinement.

    Examples:
        >>> wins = BinomialEvidence(BetaPrior(5, 5), sd_prior=GammaPrior(4, 8)).fit([16, 15, 18], [20, 20, 20])
        >>> wins.inclusion_bf_["effect"].value > 10
        True

    References:
        Bartoš et al. (2023). Fair coins tend to land on the same side they started: Evidence from 350,757 flips.
        arXiv:2310.04153.
    """

    def __init__(
        self,
        effect_prior: BetaPrior = BetaPrior(5100, 4900, lower=0.5),  # noqa: B008 - immutable
        bias_prior: BetaPrior = BetaPrior(5000, 5000),  # noqa: B008
        sd_prior: SdPrior = GammaPrior(4, 200),  # noqa: B008
        null: float = 0.5,
        quadrature: Quadrature | Literal["auto"] = "auto",
    ) -> None:
        self.effect_prior = effect_prior
        self.bias_prior = bias_prior
        self.sd_prior = sd_prior
        self.null = null
        self.quadrature = quadrature

    def fit(self, successes: Any, trials: Any, group: Any = None, condition: Any = None) -> Self:
        """Compute marginal likelihoods, Bayes factors and estimates.

        Args:
            successes: successes per row.
            trials: trials per row.
            group: group label per row (a person, a data set, a user); each row is its own group by default.
            condition: one of two labels per row. True, 1, or else the label that sorts first is the first condition.

        Raises:
            ValueError: if counts are not whole, negative, or successes exceed trials; if a group has no trials; if
                ``condition`` has not two levels; if ``null`` cannot be used.
            QuadratureError: if an integral does not converge.
        """
        x, n = _checks.successes_and_trials(successes, trials)
        _checks.fraction("null", self.null)
        groups, member = _levels("group", np.arange(len(x)) if group is None else group, len(x))
        self.condition_levels_ = None
        first = np.ones(len(x), dtype=bool)
        if condition is not None:
            levels, which = _levels("condition", condition, len(x))
            if len(levels) != 2:
                raise ValueError(f"condition must have 2 levels, got {len(levels)}: {levels[:5]}")
            if self.null != 0.5:
                raise ValueError(f"null must be 0.5 where there are two conditions, got {self.null}")
            # True and 1 before False and 0, other labels sorted: the order of rows must not change the sign of the
            # effect.
            one, two = sorted(levels, key=lambda level: (level != 1, level))
            self.condition_levels_, first = (one, two), which == levels.index(one)
        table = np.zeros((len(groups), 4))
        for column, values in enumerate((x * first, n * first, x * ~first, n * ~first)):
            table[:, column] = np.bincount(member, values, len(groups))
        empty = np.flatnonzero(table[:, 1] + table[:, 3] == 0)
        if empty.size:
            raise ValueError(f"trials must not be 0 for a whole group, got 0 for group {groups[int(empty[0])]!r}")
        return self._fit_table(groups, table)

    def _fit_table(self, groups: list[Any], table: Floats) -> Self:
        """Fit to one row per group: successes and trials of the first, then of the second condition."""
        if len(groups) == 1:
            warnings.warn("one group cannot show a spread between groups: sd is not identified", stacklevel=3)
        self.groups_, self.table_ = groups, table
        cells, self._which_cell = _distinct(table)
        factors = [EFFECT, SPREAD] if self.condition_levels_ is None else [EFFECT, BIAS, SPREAD]
        # Smallest first, so that the full model, whose posterior is kept, comes last.
        models = [m for size in range(len(factors) + 1) for m in itertools.combinations(factors, size)]
        integrals = {_name(model): self._integrate(cells, model) for model in models}
        self.log_marginal_ = {name: integral.log_value for name, integral in integrals.items()}
        self.quadrature_change_ = max(abs(integral.change) for integral in integrals.values())
        total = special.logsumexp(list(self.log_marginal_.values()))
        self.posterior_model_probs_ = {name: math.exp(v - total) for name, v in self.log_marginal_.items()}
        self.inclusion_bf_ = {factor: self._inclusion(factor) for factor in factors}
        full = integrals[_name(tuple(factors))]
        self.estimate_ = _estimates(full, factors)
        self.group_effects_ = self._group_effects(cells, full)
        return self

    def _integrate(self, cells: Cells, model: tuple[str, ...]) -> Integral:
        priors = [self._prior(factor) for factor in model]

        def log_density(points: list[Floats], inner: int) -> Floats:
            bias, effect, sd = self._parameters(points, model)
            likelihood = group_log_likelihood(cells, bias, effect, sd, inner)
            return likelihood + sum((p.log_density(v) for p, v in zip(priors, points, strict=True)), np.zeros(1))

        return integrate(log_density, [p.start for p in priors], [p.support for p in priors], self._rule())

    def _parameters(self, points: list[Floats], model: tuple[str, ...]) -> tuple[Floats, Floats, Floats]:
        size = len(points[0]) if points else 1
        null = {BIAS: 0.0, EFFECT: float(special.logit(self.null)), SPREAD: 0.0}
        given = dict(zip(model, points, strict=True))
        bias, effect, sd = (given.get(f, np.full(size, null[f])) for f in (BIAS, EFFECT, SPREAD))
        return bias, effect, sd

    def _prior(self, factor: str) -> _Coordinate:
        if factor == SPREAD:
            return _Coordinate(self.sd_prior.log_density, self.sd_prior.central(), (0.0, math.inf))
        prior = self.effect_prior if factor == EFFECT else self.bias_prior
        return _Coordinate(prior.log_density_logit, prior.central(), prior.support())

    def _rule(self) -> Quadrature:
        if self.quadrature == "auto":
            return Quadrature()
        if not isinstance(self.quadrature, Quadrature):
            raise ValueError(f'quadrature must be "auto" or a Quadrature, got {self.quadrature!r}')
        return self.quadrature

    def _inclusion(self, factor: str) -> BayesFactor:
        logs = self.log_marginal_.items()
        return BayesFactor(
            float(
                special.logsumexp([v for name, v in logs if factor in name.split("+")])
                - special.logsumexp([v for name, v in logs if factor not in name.split("+")])
            )
        )

    def _group_effects(self, cells: Cells, full: Integral) -> list[GroupEffect]:
        factors = [EFFECT, SPREAD] if self.condition_levels_ is None else [EFFECT, BIAS, SPREAD]
        bias, effect, sd = self._parameters(full.points, tuple(factors))
        mean, spread = group_moments(cells, bias, effect, sd, full.weights, self._rule().inner)
        mean, spread, raw = mean[self._which_cell], spread[self._which_cell], _raw(self.table_)
        trials = self.table_[:, 1] + self.table_[:, 3]
        # The posterior of a group's logit is close to normal; its mean and both ends are mapped to a probability.
        ends = [special.expit(mean + shift * spread) for shift in (0.0, -1.959964, 1.959964)]
        return [
            GroupEffect(g, int(trials[i]), float(raw[i]), Estimate(*(float(e[i]) for e in ends)))
            for i, g in enumerate(self.groups_)
        ]

    def sensitivity(self, drop: str) -> BinomialEvidence:
        """Return the same analysis without some groups.

        Args:
            drop: ``"above:0.53"`` drops groups whose raw proportion lies above 0.53, ``"below:0.4"`` those below 0.4,
                and ``"trim:2"`` the two groups whose raw proportion is farthest from the pooled one.

        Raises:
            ValueError: if ``drop`` is not of that form or leaves no group.
        """
        check_is_fitted(self, "table_")
        keep = _kept(drop, self.table_)
        if not keep.any():
            raise ValueError(f"drop={drop!r} leaves no group")
        other = BinomialEvidence(**self.get_params(deep=False))
        other.condition_levels_ = self.condition_levels_
        return other._fit_table([g for g, k in zip(self.groups_, keep, strict=True) if k], self.table_[keep])

    def report(self) -> Report:
        """Return Bayes factors, models, estimates and group effects as a report."""
        check_is_fitted(self, "table_")
        factors = [[name, bf.log10, str(bf)] for name, bf in self.inclusion_bf_.items()]
        models = [[name, log, self.posterior_model_probs_[name]] for name, log in self.log_marginal_.items()]
        estimates = [[name, e.mean, e.low, e.high] for name, e in self.estimate_.items()]
        effect, bf = self.estimate_["effect"], self.inclusion_bf_["effect"]
        summary = (
            f"{len(self.groups_)} groups. Bayes factor of an effect: {bf}. Estimate of the rate: {effect}. "
            f"Bayes factor of a spread between groups: {self.inclusion_bf_['spread']}."
        )
        blocks: list[Text | Table | Figure | Code] = [
            Table("Bayes factors", ["factor", "log10", "models with it against models without"], factors),
            shrinkage_figure(self),
            Table("Estimates under the full model", ["parameter", "mean", "low", "high"], estimates, "95 % intervals."),
            Table("Models", ["model", "log marginal likelihood", "posterior probability"], models),
        ]
        return Report("Evidence from counts", summary, blocks=blocks)


def shrinkage_figure(fitted: BinomialEvidence) -> Figure:
    """Draw each group's own proportion beside its estimate under the full model."""
    import plotly.graph_objects as go  # here, because it takes long and only figures need it

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
    figure.update_layout(xaxis_title="group, by its own proportion", yaxis_title="proportion in the effect's direction")
    ranges = [f"from {min(v):.3f} to {max(v):.3f}" for v in (alone[0], together[0])]
    alt = f"Proportions of {len(order)} groups run {ranges[0]} taken alone and {ranges[1]} when estimated together."
    caption = "95 % intervals. Estimated together, groups with few trials move towards the others."
    return Figure("Each group alone and with the others", figure, alt, caption)


@dataclass(frozen=True, slots=True)
class _Coordinate:
    """A prior in the form that the integrator uses."""

    log_density: Callable[[Floats], Floats]
    start: tuple[float, float]
    support: tuple[float, float]


def _levels(name: str, labels: Any, length: int) -> tuple[list[Any], NDArray[np.intp]]:
    """Distinct labels in order of first appearance, and the index of each row's label."""
    values = list(labels)
    if len(values) != length:
        raise ValueError(f"{name} must have one label per row ({length}), got {len(values)}")
    if any(v is None or v != v for v in values):
        raise ValueError(f"{name} must not have missing labels")
    order = {label: i for i, label in enumerate(dict.fromkeys(values))}
    return list(order), np.array([order[v] for v in values], dtype=np.intp)


def _distinct(table: Floats) -> tuple[Cells, NDArray[np.intp]]:
    rows, which, multiplicity = np.unique(table, axis=0, return_inverse=True, return_counts=True)
    cells = Cells(rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3], multiplicity.astype(np.float64))
    return cells, which.reshape(-1)


def _name(model: tuple[str, ...]) -> str:
    return "+".join(model) or NULL_MODEL


def _raw(table: Floats) -> Floats:
    """Proportion in the direction of the effect: successes under the first condition, failures under the second."""
    share: Floats = (table[:, 0] + table[:, 3] - table[:, 2]) / (table[:, 1] + table[:, 3])
    return share


def _kept(drop: str, table: Floats) -> NDArray[np.bool_]:
    rule, _, number = drop.partition(":")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    raw = _raw(table)
    if rule == "above" and 0 <= value <= 1:
        return raw <= value
    if rule == "below" and 0 <= value <= 1:
        return raw >= value
    if rule == "trim" and value >= 0 and value == int(value):
        trials = table[:, 1] + table[:, 3]
        distance = np.abs(raw - (raw * trials).sum() / trials.sum())
        keep = np.ones(len(raw), dtype=bool)
        keep[np.argsort(-distance, kind="stable")[: int(value)]] = False
        return keep
    raise ValueError(f'drop must be "above:PROPORTION", "below:PROPORTION" or "trim:COUNT", got {drop!r}')


def _estimates(full: Integral, factors: list[str]) -> dict[str, Estimate]:
    out = {}
    for axis, factor in enumerate(factors):
        low, high = full.quantiles(axis, (0.025, 0.975))
        if factor == SPREAD:
            values = full.points[axis]
            out["sd"] = Estimate(full.mean(values), float(low), float(high))
            above_half = [float(special.expit(v)) - 0.5 for v in (low, high)]
            out["heterogeneity"] = Estimate(full.mean(special.expit(values) - 0.5), *above_half)
        else:
            mean = full.mean(special.expit(full.points[axis]))
            out[factor] = Estimate(mean, float(special.expit(low)), float(special.expit(high)))
    return out
