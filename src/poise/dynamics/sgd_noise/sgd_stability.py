"""Whether SGD can stay at a minimum, and what would have to change."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from poise.curvature import GGN, eigs
from poise.dynamics.sgd_noise.coherence import Coherence, coherence_of_gram
from poise.dynamics.sgd_noise.curvature_moments import CurvatureMoments, curvature_moments, lr_bound_error
from poise.dynamics.sgd_noise.per_example_factors import PerExampleFactors, PerExampleGram, per_example_gram
from poise.dynamics.sgd_noise.sampling import Sampling, check_batch
from poise.dynamics.sgd_noise.second_moment_operator import SecondMomentOperator, check_lr

_MOST_ROWS = 2000  # beyond it a product with the exact operator takes seconds
_MOST_EXAMPLES, _FEWEST_EXAMPLES = 256, 16
_MOST_NUMBERS = 8e8  # of the factors in an estimate: about ten seconds
_PROBES = 4
_SKETCH = 4093  # a prime, so that the folds of the sketch do not fall into step with the rows of a weight matrix


class NotInterpolating(UserWarning):
    """The model does not fit every example, so SGD does not come to rest here and its stability is approximate."""


@dataclass(frozen=True, slots=True)
class SGDStability:
    r"""Stability of SGD at the present weights; G is the Gauss-Newton matrix of the mean loss.

    Attributes:
        n: number of examples.
        outputs: outputs of one example.
        lr: learning rate in question; ``None`` if none was given.
        batch_size: examples a step.
        sampling: how batches are drawn.
        trace: trace of G.
        frobenius: Frobenius norm of G.
        sharpness: largest eigenvalue of G.
        fourth_moment_ratio: :math:`\frac1n\sum_i \mathrm{tr}\,H_i^2 / (\mathrm{tr}\,G)^2`; with one output at least 1,
            and 1 where all gradients are equally long.
        lr_gd: limit of gradient descent, 2 / sharpness.
        lr_trace: 2 / trace, a limit for batches of one; ``None`` for more than one output, where it does not hold.
        lr_moment: moment bound: unstable in mean square above it.
        lr_moment_se: its standard error; 0 if all examples were used.
        lr_exact: limit in mean square, exact; ``None`` where that was too large to compute.
        interpolation_gap: mean loss.
        approximate: whether the gap is too large for the theory, which is of minima that fit every example.
        used: number of examples behind the numbers.
        moments: of the Hessians of single examples.
        operator: the exact operator; ``None`` where that was too large.
        coherence: coherence of the examples; ``None`` where there is no operator.
    """

    n: int
    outputs: int
    lr: float | None
    batch_size: int
    sampling: Sampling
    trace: float
    frobenius: float
    sharpness: float
    fourth_moment_ratio: float
    lr_gd: float
    lr_trace: float | None
    lr_moment: float
    lr_moment_se: float
    lr_exact: float | None
    interpolation_gap: float
    approximate: bool
    used: int
    moments: CurvatureMoments
    operator: SecondMomentOperator | None
    coherence: Coherence | None

    @property
    def stable(self) -> bool | None:
        """Whether the learning rate is stable in mean square; ``None`` if no bound decides it or none was given."""
        if self.lr is None:
            return None
        if self.lr_exact is not None:
            return self.lr <= self.lr_exact
        return False if self.lr > min(self.lr_gd, self.lr_moment + 2 * self.lr_moment_se) else None

    @property
    def margin(self) -> float | None:
        """``lr / lr_exact``: stable up to 1; ``None`` without one of the two."""
        return None if self.lr is None or self.lr_exact is None else self.lr / self.lr_exact

    def batch_min(self, lr: float) -> int | None:
        """Return the smallest batch size that is stable at ``lr``; ``None`` if not even a full batch is.

        Exact where ``lr_exact`` is; otherwise the smallest that the bounds allow, and the true one may be larger.

        Args:
            lr: learning rate.

        Raises:
            ValueError: if ``lr`` is not positive and finite.
        """
        check_lr(lr)
        if self.operator is not None:
            return self.operator.at(lr=lr).smallest_batch()
        return self.moments.smallest_batch(lr, self.sampling) if lr <= self.lr_gd else None


def sgd_stability(
    model: nn.Module,
    loss_fn: Any,
    data: Any,
    *,
    lr: float | None = None,
    batch_size: int = 1,
    sampling: Sampling = "without",
    exact: bool | Literal["auto"] = "auto",
    params: Sequence[str] | None = None,
    sharpness: float | None = None,
    subsample: int | None = None,
    chunk_size: int = 64,
    max_bytes: int = 2**30,
    interpolation_tol: float = 1e-3,
    generator: torch.Generator | None = None,
) -> SGDStability:
    """Return how stable SGD without momentum is at the model's present weights.

    ``exact="auto"`` computes the exact limit where examples x outputs are at most 2000 and their factors fit into
    ``max_bytes``. Otherwise the moment bound is estimated from a random sample of examples and, of each, four random
    combinations of its outputs, with its standard error; the fields hold how many examples were used.

    Learning rates are those of the loss as given: ``nn.MSELoss()`` has twice the curvature of half the squared error.

    Args:
        model: float32 or float64, at a minimum that fits the data, without layers that mix examples.
        loss_fn: a criterion such as ``nn.CrossEntropyLoss()``, or a :class:`poise.curvature.Supervised`.
        data: a batch or an iterable of batches.
        lr: learning rate in question.
        batch_size: examples a step, from 1 to n.
        sampling: ``"without"``, ``"replacement"`` or ``"bernoulli"``, see
            :func:`~poise.dynamics.sgd_noise.sampling.noise_coefficients`.
        exact: whether to compute the exact limit.
        params: names of parameters or of modules; by default all that require gradients.
        sharpness: largest eigenvalue of the Gauss-Newton matrix if it is known; not needed with ``exact``.
        subsample: how many examples an estimate uses; by default about ten seconds' worth, 16 to 256.
        chunk_size: most examples at once; fewer where ``max_bytes`` requires it.
        max_bytes: most memory for factors.
        interpolation_tol: mean loss above which the result is flagged as approximate.
        generator: of the sample, the signs and the sketch.

    Raises:
        ValueError: if an argument is out of range, examples depend on each other (BatchNorm in train mode), outputs are
            random (dropout in train mode), a gradient is not finite, or nothing is trainable.

    Warns:
        NotInterpolating: if the mean loss is above ``interpolation_tol``.

    References:
        Wu and Su, "The Implicit Regularization of Dynamical Stability in Stochastic Gradient Descent", ICML 2023,
        arXiv:2305.17490. Mulayoff and Michaeli, COLT 2024, arXiv:2306.07850.
    """
    if lr is not None:
        check_lr(lr)
    if exact not in (True, False, "auto"):
        raise ValueError(f"exact must be True, False or 'auto', got {exact!r}")
    factors = PerExampleFactors(model, loss_fn, data, params)
    check_batch(factors.n, batch_size, sampling)
    gap = factors.mean_loss()
    if gap > interpolation_tol:
        warnings.warn(
            f"the mean loss is {gap:.3g}, above {interpolation_tol:g}: SGD does not come to rest here, and limits of "
            "the learning rate are approximate",
            NotInterpolating,
            stacklevel=2,
        )
    rows = factors.n * factors.outputs
    fits = rows <= _MOST_ROWS and rows * factors.parameters * 8 <= max_bytes
    if exact is True or (exact == "auto" and fits):
        gram = per_example_gram(factors, chunk_size=chunk_size, max_bytes=max_bytes)
        operator = SecondMomentOperator.from_gram(gram.gram, gram.n, lr or 1.0, batch_size, sampling)
        found, top = coherence_of_gram(gram), operator.eigenvalues[0].item()
    else:
        gram = _estimated_gram(factors, subsample, chunk_size, max_bytes, generator)
        operator, found = None, None
        top = _sharpness(model, loss_fn, data, params) if sharpness is None else sharpness
    moments = curvature_moments(gram)
    return SGDStability(
        n=factors.n,
        outputs=factors.outputs,
        lr=lr,
        batch_size=batch_size,
        sampling=sampling,
        trace=moments.trace,
        frobenius=moments.frobenius,
        sharpness=top,
        fourth_moment_ratio=moments.fourth / moments.trace**2,
        lr_gd=2.0 / top,
        lr_trace=2.0 / moments.trace if factors.outputs == 1 else None,
        lr_moment=moments.lr_bound(batch_size, sampling),
        lr_moment_se=lr_bound_error(gram, batch_size, sampling),
        lr_exact=None if operator is None else operator.critical_lr(tol=1e-6),
        interpolation_gap=gap,
        approximate=gap > interpolation_tol,
        used=gram.used,
        moments=moments,
        operator=operator,
        coherence=found,
    )


def _estimated_gram(
    factors: PerExampleFactors,
    subsample: int | None,
    chunk_size: int,
    max_bytes: int,
    generator: torch.Generator | None,
) -> PerExampleGram:
    probes = None if factors.outputs <= _PROBES else _PROBES
    rows = probes or factors.outputs
    if subsample is None:
        affordable = int(_MOST_NUMBERS / (rows * factors.parameters))
        subsample = min(factors.n, _MOST_EXAMPLES, max(_FEWEST_EXAMPLES, affordable))
    fits = subsample * rows * factors.parameters * 8 <= max_bytes
    return per_example_gram(
        factors,
        subsample=subsample,
        sketch=None if fits else _SKETCH,
        probes=probes,
        chunk_size=chunk_size,
        max_bytes=max_bytes,
        generator=generator,
    )


def _sharpness(model: nn.Module, loss_fn: Any, data: Any, params: Sequence[str] | None) -> float:
    ggn = GGN(model, loss_fn, data, params)
    return float(eigs(ggn, tol=1e-2, generator=torch.Generator(ggn.device).manual_seed(0)).values[0])
