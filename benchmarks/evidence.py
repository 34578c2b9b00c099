"""Time of eight hierarchical models of 350,757 coin flips, and of the same marginal likelihood by general quadrature.

Run with ``python benchmarks/evidence.py``. The peer is what SciPy offers without this package: one model, one person
effect at a time by adaptive quadrature inside a Gauss-Legendre rule for the two shared parameters.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
from scipy import integrate, special, stats

from poise.data import load_coin_flips
from poise.evidence import BetaPrior, BinomialEvidence, GammaPrior

REPEATS = 5
PRIOR, SD = BetaPrior(5100, 4900, lower=0.5), GammaPrior(4, 200)


def eight_models() -> float:
    """All eight models of the 48 people; returns the log marginal likelihood of the full one."""
    flips = load_coin_flips()
    heads = np.concatenate([flips.hsame, flips.hdiff])
    trials = np.concatenate([flips.started_heads, flips.flips - flips.started_heads])
    start = ["heads"] * len(flips) + ["tails"] * len(flips)
    return BinomialEvidence().fit(heads, trials, list(flips.people) * 2, start).log_marginal_["effect+bias+spread"]


def one_model_here(x: np.ndarray, n: np.ndarray) -> float:
    """Effect and spread of a few people, without conditions."""
    return BinomialEvidence(PRIOR, sd_prior=SD).fit(x, n).log_marginal_["effect+spread"]


def one_model_scipy(x: np.ndarray, n: np.ndarray, nodes: int = 12) -> float:
    """The same number from scipy.integrate.quad and a product rule."""
    at, weight = special.roots_legendre(nodes)
    logits, sds = 0.05 * (at + 1), 0.06 * (at + 1)
    total = []
    for logit, w_logit in zip(logits, weight * 0.05, strict=True):
        for sd, w_sd in zip(sds, weight * 0.06, strict=True):
            people = sum(_person(k, m, logit, sd) for k, m in zip(x, n, strict=True))
            prior = PRIOR.log_density_logit(logit) + stats.gamma.logpdf(sd, 4, scale=1 / 200)
            total.append(people + prior + np.log(w_logit * w_sd))
    return float(special.logsumexp(total))


def _person(k: float, m: float, logit: float, sd: float) -> float:
    top = k * np.log(k / m) + (m - k) * np.log1p(-k / m)

    def f(z: float) -> float:
        eta = logit + sd * z
        return np.exp(k * special.log_expit(eta) + (m - k) * special.log_expit(-eta) - top - z * z / 2)

    return top + float(np.log(integrate.quad(f, -8, 8, limit=200)[0] / np.sqrt(2 * np.pi)))


def median_seconds(f: Callable[[], float]) -> float:
    """Median wall time of several calls."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        f()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    """Print the times and the agreement."""
    flips = load_coin_flips()
    x, n = flips.same[:4].astype(float), flips.flips[:4].astype(float)
    print(f"eight models, 48 people: {median_seconds(eight_models):.2f} s (target 3 s)")
    print(f"same bits twice: {eight_models() == eight_models()}")
    here, peer = median_seconds(lambda: one_model_here(x, n)), median_seconds(lambda: one_model_scipy(x, n))
    print(f"4 people, here with 4 models: {here:.3f} s; SciPy with 1 model: {peer:.3f} s; ratio {peer / here:.1f}")
    print(f"difference of the log marginal likelihoods: {abs(one_model_here(x, n) - one_model_scipy(x, n)):.1e}")


if __name__ == "__main__":
    main()
