"""Bayes factor of one rate against a fixed value, all trials pooled: closed form."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

from poise.evidence import _checks
from poise.evidence.bayes_factor import BayesFactor
from poise.evidence.priors import BetaPrior, beta_mass
from poise.evidence.quadrature import Floats, Quadrature, integrate
from poise.report import Report, Table

Alternative = Literal["two-sided", "greater"]


@dataclass(frozen=True, slots=True)
class PooledEvidence:
    """Evidence for a rate other than ``null``, from pooled counts.

    Args:
        successes: successes.
        trials: trials.
        prior: prior of the rate where it is not ``null``.
        null: the rate under the null hypothesis.
        bf: the Bayes factor for a rate other than ``null``.
    """

    successes: int
    trials: int
    prior: BetaPrior
    null: float
    bf: BayesFactor

    def __float__(self) -> float:
        return self.bf.value

    def __str__(self) -> str:
        return str(self.bf)

    def report(self) -> Report:
        """Return the evidence as a report."""
        return _pooled_report([self])


@dataclass(frozen=True, slots=True)
class PriorRobustness:
    """The same counts under several priors."""

    results: tuple[PooledEvidence, ...]

    @property
    def range(self) -> tuple[BayesFactor, BayesFactor]:
        """Smallest and largest Bayes factor."""
        logs = [result.bf.log for result in self.results]
        return BayesFactor(min(logs)), BayesFactor(max(logs))

    def report(self) -> Report:
        """Return one row per prior as a report."""
        return _pooled_report(self.results)


def pooled_bf(
    successes: int,
    trials: int,
    prior: BetaPrior,
    alternative: Alternative = "two-sided",
    null: float = 0.5,
) -> PooledEvidence:
    """Compare a rate with prior ``prior`` to the fixed rate ``null``.

    All trials count as if they came from one source. Where groups differ this overstates the evidence, by many orders
    of magnitude: use :class:`BinomialEvidence` then.

    Args:
        successes: successes.
        trials: trials; 0 gives a Bayes factor of 1.
        prior: prior of the rate under the alternative.
        alternative: ``"greater"`` truncates the prior to rates above ``null``.
        null: rate under the null hypothesis, in (0, 1).

    Raises:
        ValueError: if counts are not whole, negative, or successes exceed trials; if ``alternative`` is unknown; if
            ``null`` is outside (0, 1).

    References:
        Bartoš et al., Fair coins tend to land on the same side they started, 2023, arXiv:2310.04153.

    Examples:
        >>> print(pooled_bf(178_078, 350_757, BetaPrior(5100, 4900), alternative="greater"))
        1.71e17 for, 5.85e-18 against (log10 +17.23)
    """
    x, n = (int(v[0]) for v in _checks.successes_and_trials([successes], [trials]))
    _checks.fraction("null", null)
    if alternative not in ("two-sided", "greater"):
        raise ValueError(f'alternative must be "two-sided" or "greater", got {alternative!r}')
    used = prior.truncated(null) if alternative == "greater" else prior
    log_null = x * math.log(null) + (n - x) * math.log1p(-null)
    return PooledEvidence(x, n, used, null, BayesFactor(_log_marginal(x, n, used) - log_null if n else 0.0))


def bf_robustness(
    successes: int, trials: int, priors: Sequence[BetaPrior], alternative: Alternative = "two-sided", null: float = 0.5
) -> PriorRobustness:
    """Repeat :func:`pooled_bf` under several priors.

    Args:
        successes: successes.
        trials: trials.
        priors: the priors, at least one.
        alternative: as for :func:`pooled_bf`.
        null: as for :func:`pooled_bf`.

    Raises:
        ValueError: if ``priors`` is empty, and as :func:`pooled_bf`.
    """
    if not len(priors):
        raise ValueError("priors must hold at least one prior, got none")
    return PriorRobustness(tuple(pooled_bf(successes, trials, p, alternative, null) for p in priors))


def sequential_bf(
    stream: Iterable[tuple[int, int]],
    prior: BetaPrior,
    alternative: Alternative = "two-sided",
    null: float = 0.5,
) -> Iterator[PooledEvidence]:
    """Yield the evidence after each batch of a stream of counts.

    A Bayes factor may be read after every batch and the stream stopped at any time: under the null hypothesis it
    exceeds k at any time with probability at most 1/k.

    Args:
        stream: pairs of (successes, trials), one per batch.
        prior: as for :func:`pooled_bf`.
        alternative: as for :func:`pooled_bf`.
        null: as for :func:`pooled_bf`.

    Raises:
        ValueError: as :func:`pooled_bf`.
    """
    x = n = 0
    for successes, trials in stream:
        _checks.successes_and_trials([successes], [trials])
        x, n = x + int(successes), n + int(trials)
        yield pooled_bf(x, n, prior, alternative, null)


def _log_marginal(x: int, n: int, prior: BetaPrior) -> float:
    """Log of the mean likelihood under the prior, without the binomial coefficient."""
    whole = special.betaln(prior.a + x, prior.b + n - x) - special.betaln(prior.a, prior.b)
    if (prior.lower, prior.upper) == (0.0, 1.0):
        return float(whole)
    posterior_mass = beta_mass(prior.a + x, prior.b + n - x, prior.lower, prior.upper)
    if posterior_mass > 1e-200:
        return float(whole + math.log(posterior_mass) - math.log(beta_mass(prior.a, prior.b, prior.lower, prior.upper)))
    # The data contradict the truncation so much that the mass underflows; its logarithm does not.
    return integrate(_Product(x, n, prior), [prior.central()], [prior.support()], Quadrature()).log_value


@dataclass(frozen=True, slots=True)
class _Product:
    """Likelihood times prior on the logit scale."""

    x: int
    n: int
    prior: BetaPrior

    def __call__(self, points: list[Floats], inner: int) -> Floats:
        logit = points[0]
        likelihood = self.x * special.log_expit(logit) + (self.n - self.x) * special.log_expit(-logit)
        return np.asarray(likelihood + self.prior.log_density_logit(logit), dtype=np.float64)


def _pooled_report(results: Sequence[PooledEvidence]) -> Report:
    first = results[0]
    rows = [[str(r.prior), r.bf.log10, str(r.bf)] for r in results]
    columns = ["prior of the rate", "log10 Bayes factor", "Bayes factor"]
    proportion = f", a proportion of {first.successes / first.trials:.4f}" if first.trials else ""
    counts = f"{first.successes} of {first.trials}{proportion}"
    summary = f"{counts}. Evidence for a rate other than {first.null:g}: {first.bf}."
    return Report("Pooled Bayes factor", summary, blocks=[Table("Bayes factors", columns, rows)])
