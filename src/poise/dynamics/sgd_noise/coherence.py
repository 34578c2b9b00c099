"""Coherence of the Hessians of single examples: how much mini-batch noise lowers the limit of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from poise.dynamics.sgd_noise.per_example_factors import PerExampleFactors, PerExampleGram, per_example_gram

_GROUPS = 10


@dataclass(frozen=True, slots=True)
class Coherence:
    r"""Coherence of the Gauss-Newton matrices :math:`H_i` of single examples, :math:`H` their mean.

    Attributes:
        sigma: largest eigenvalue of S over the largest of any :math:`H_i`. At least 1; with one output from 1 (no two
            examples have one direction: the noise is largest) to n (all examples alike: none).
        S: coherence matrix :math:`S_{ij} = \sqrt{\mathrm{tr}(H_i H_j)}` of the examples that were used.
        lambda_1: largest eigenvalue of H.
        max_lambda_i: largest eigenvalue of any :math:`H_i`.
        n: number of examples of the data.
        se: standard error of ``sigma`` by the jackknife over ten groups of examples; 0 if all were used.
        estimated: whether ``sigma`` is an estimate from a sample or a sketch; see :func:`coherence`.
    """

    sigma: float
    S: Float[Tensor, "used used"]
    lambda_1: float
    max_lambda_i: float
    n: int
    se: float
    estimated: bool

    @property
    def lr_gd(self) -> float:
        """Limit of gradient descent, 2 / lambda_1."""
        return 2.0 / self.lambda_1

    def lr_coherence(self, batch_size: int) -> float:
        r"""Return :math:`\frac{2}{\lambda_1}\,\sigma / (\sigma + n/B - 1)`: a point estimate.

        Exact for groups of copies that are orthogonal to each other, batches drawn by independent coins.

        Args:
            batch_size: examples a step.
        """
        return self.lr_gd * self.sigma / (self.sigma + self.n / batch_size - 1.0)

    def lr_divergence(self, batch_size: int) -> float:
        r"""Return the learning rate above which SGD certainly diverges in mean square (batches by independent coins).

        .. math:: \min\left(\frac{2}{\lambda_1},\ \frac{\sigma}{\lambda_1} (n/B - 1)^{-1/2}\right)

        Args:
            batch_size: examples a step.
        """
        noise = self.n / batch_size - 1.0
        return self.lr_gd if noise == 0 else min(self.lr_gd, self.sigma / self.lambda_1 / math.sqrt(noise))


def coherence(
    model: nn.Module,
    loss_fn: Any,
    data: Any,
    *,
    params: Sequence[str] | None = None,
    subsample: int | None = None,
    sketch: int | None = None,
    chunk_size: int = 64,
    max_bytes: int = 2**30,
    generator: torch.Generator | None = None,
) -> Coherence:
    r"""Return the coherence of a model's Gauss-Newton matrices, one an example.

    From a sample of m examples, :math:`\sigma \approx 1 + (\sigma_m - 1)(n - 1)/(m - 1)`: exact where examples are all
    alike or all orthogonal, a guess between. A sketch adds noise to products that are near zero and so overstates sigma
    for examples with little in common.

    Args:
        model: float32 or float64, at a minimum that fits the data.
        loss_fn: a criterion such as ``nn.CrossEntropyLoss()``, or a :class:`poise.curvature.Supervised`.
        data: a batch or an iterable of batches.
        params: names of parameters or of modules; by default all that require gradients.
        subsample: how many examples to use; all by default.
        sketch: length to which rows are shortened, see
            :func:`~poise.dynamics.sgd_noise.per_example_factors.per_example_gram`.
        chunk_size: most examples at once.
        max_bytes: most memory for factors.
        generator: of the sample and the sketch.

    Raises:
        ValueError: if there is no curvature, the loss is not convex in the outputs, ``sketch`` is below the number of
            outputs, or as :class:`~poise.dynamics.sgd_noise.per_example_factors.PerExampleFactors`.

    References:
        Dexter et al., "A Precise Characterization of SGD Stability Using Loss Surface Geometry", ICLR 2024,
        arXiv:2401.12332.
    """
    factors = PerExampleFactors(model, loss_fn, data, params)
    gram = per_example_gram(
        factors,
        subsample=subsample,
        sketch=sketch,
        chunk_size=chunk_size,
        max_bytes=max_bytes,
        generator=generator,
    )
    return coherence_of_gram(gram)


def coherence_of_gram(gram: PerExampleGram) -> Coherence:
    """Return the coherence from the products of the rows of the factors.

    Args:
        gram: with all rows of each example.

    Raises:
        ValueError: if all factors are zero or rows are random combinations.
    """
    if gram.probes:
        raise ValueError("gram must hold all rows of each example, got random combinations (probes)")
    matrix = gram.squared_products().clamp(min=0).sqrt()  # negative: a sketched product below its noise
    own = torch.linalg.eigvalsh(gram.own_blocks())[:, -1]
    if own.max() <= 0:
        raise ValueError("no curvature: every per-example factor is zero")
    sampled = gram.used < gram.n
    return Coherence(
        sigma=_scaled_sigma(matrix, own, gram.n),
        S=matrix,
        lambda_1=torch.linalg.eigvalsh(gram.gram)[-1].item() / gram.used,
        max_lambda_i=own.max().item(),
        n=gram.n,
        se=_jackknife_error(matrix, own, gram.n) if sampled else 0.0,
        estimated=sampled or gram.noise is not None,
    )


def _scaled_sigma(matrix: Tensor, own: Float[Tensor, " used"], n: int) -> float:
    """Return sigma of n examples, judged by those that the matrix holds."""
    m = len(matrix)
    sigma = float(torch.linalg.eigvalsh(matrix)[-1] / own.max())
    return sigma if m == n else 1.0 + (sigma - 1.0) * (n - 1) / max(1, m - 1)


def _jackknife_error(matrix: Tensor, own: Tensor, n: int) -> float:
    m = len(matrix)
    groups = min(_GROUPS, m)
    if groups < 3:
        return math.inf
    group = torch.arange(m) % groups
    kept = [group != k for k in range(groups)]
    sigmas = torch.tensor([_scaled_sigma(matrix[k][:, k], own[k], n) for k in kept], dtype=torch.float64)
    return math.sqrt((1 - m / n) * (groups - 1) * float(sigmas.var(correction=0)))
