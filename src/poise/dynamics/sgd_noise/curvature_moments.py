"""Traces of the Hessians of single examples, and the learning rate above which SGD is certainly unstable."""

from __future__ import annotations

import math
from dataclasses import dataclass

from poise.dynamics.sgd_noise.per_example_factors import PerExampleGram
from poise.dynamics.sgd_noise.sampling import Sampling, noise_coefficients, smallest_batch_with


@dataclass(frozen=True, slots=True)
class CurvatureMoments:
    r"""Moments of the Hessians :math:`H_i` of single examples, :math:`G` their mean.

    Attributes:
        trace: :math:`\mathrm{tr}\,G`.
        trace_squared: :math:`\mathrm{tr}\,G^2`.
        fourth: :math:`\frac1n \sum_i \mathrm{tr}\,H_i^2`; with one output the mean of :math:`|g_i|^4`.
        n: number of examples of the data.
        used: number of examples that were used.

    References:
        Wu and Su, "The Implicit Regularization of Dynamical Stability in Stochastic Gradient Descent", ICML 2023,
        arXiv:2305.17490.
    """

    trace: float
    trace_squared: float
    fourth: float
    n: int
    used: int

    @property
    def frobenius(self) -> float:
        """Frobenius norm of G."""
        return math.sqrt(max(0.0, self.trace_squared))

    def lr_bound(self, batch_size: int, sampling: Sampling) -> float:
        r"""Return the learning rate above which SGD is unstable in mean square: the moment bound.

        From :math:`\langle I, T(I)\rangle \le \langle I, I\rangle`:

        .. math:: \eta \le 2\,\mathrm{tr}\,G / (\alpha\,\mathrm{tr}\,G^2 + \beta\,\tfrac1n\sum_i \mathrm{tr}\,H_i^2).

        Args:
            batch_size: examples a step.
            sampling: see :func:`~poise.dynamics.sgd_noise.sampling.noise_coefficients`.
        """
        alpha, beta = noise_coefficients(self.n, batch_size, sampling)
        return 2.0 * self.trace / (alpha * self.trace_squared + beta * self.fourth)

    def smallest_batch(self, lr: float, sampling: Sampling) -> int | None:
        """Return the smallest batch size that the moment bound allows; ``None`` if it allows none.

        Args:
            lr: learning rate.
            sampling: how batches are drawn.
        """
        spare = 2.0 * self.trace / lr - self.trace_squared
        step = self.fourth if sampling == "bernoulli" else self.fourth - self.trace_squared
        if step <= 1e-12 * self.fourth:  # no noise: the examples are copies of one
            return 1 if spare >= 0 else None
        return smallest_batch_with(spare / step, self.n, sampling)


def curvature_moments(gram: PerExampleGram) -> CurvatureMoments:
    """Return the moments; unbiased where the examples are a sample.

    Args:
        gram: inner products of the factors.

    Raises:
        ValueError: if all factors are zero.
    """
    m, n = gram.used, gram.n
    products = gram.squared_products()
    fourth = float(products.diagonal().mean())
    # One example gives no pairs; all others are taken as copies of it, which cannot understate G.
    cross = float(products.sum() - products.diagonal().sum()) / (m * (m - 1)) if m > 1 else fourth
    trace = float(gram.traces.mean())
    if trace <= 0:
        raise ValueError("no curvature: every per-example factor is zero, so no learning rate is unstable")
    return CurvatureMoments(trace, (fourth + (n - 1) * cross) / n, fourth, n, m)


def lr_bound_error(gram: PerExampleGram, batch_size: int, sampling: Sampling) -> float:
    """Return the standard error of the moment bound: jackknife over the examples, 0 if all were used.

    Args:
        gram: inner products of the factors.
        batch_size: examples a step.
        sampling: how batches are drawn.
    """
    if gram.used == gram.n:
        return 0.0
    if gram.used < 3:
        return math.inf
    m = gram.used
    traces, products = gram.traces, gram.squared_products()
    own, total = products.diagonal(), products.sum() - products.diagonal().sum()
    others = products.sum(1) - own
    bounds = []
    for i in range(m):
        fourth = float((own.sum() - own[i]) / (m - 1))
        cross = float((total - 2 * others[i]) / ((m - 1) * (m - 2)))
        trace = float((traces.sum() - traces[i]) / (m - 1))
        moments = CurvatureMoments(trace, (fourth + (gram.n - 1) * cross) / gram.n, fourth, gram.n, m - 1)
        bounds.append(moments.lr_bound(batch_size, sampling))
    mean = math.fsum(bounds) / m
    correction = 1 - m / gram.n  # of a finite population
    return math.sqrt(correction * (m - 1) / m * math.fsum((bound - mean) ** 2 for bound in bounds))
