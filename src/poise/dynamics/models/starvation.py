r"""Gradient starvation: a strong feature that separates the data keeps weaker ones from being learned.

A classifier is linear in its parameters, :math:`\hat y = \Phi\theta`, with labels :math:`y \in \{-1, 1\}`. Its
margins are :math:`r = Y\hat y`, its features the singular triples of :math:`Y\Phi = USV^\top`: directions :math:`U`
over the samples, strengths :math:`S`. The response to feature j is :math:`z_j = u_j^\top r`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Shaped
from scipy.optimize import brentq
from torch import Tensor, nn

from poise.curvature import NTK
from poise.dynamics.systems.fixed_point import NotConverged

_MOST_SAMPLES = 2000


def ntk_features(
    model: nn.Module, x: Any, labels: Shaped[Tensor, " n"]
) -> tuple[Float[Tensor, "n n"], Float[Tensor, " n"]]:
    r"""Return the features of a network that is linearised at its present parameters.

    They come from the eigenvectors of :math:`Y\Phi\Phi^\top Y`, so that features weaker than the root of the rounding
    error times the strongest one are noise.

    Args:
        model: float32 or float64, with one output a sample.
        x: inputs of n samples, at most 2000.
        labels: -1 or 1 for each sample.

    Returns:
        Directions ``U`` as columns, turned so that each has a sum that is not negative, and strengths ``s`` in falling
        order; both float64.

    Raises:
        ValueError: if there are more than 2000 samples, ``labels`` are not -1 and 1, or the model has another number of
            outputs.

    References:
        Pezeshki et al., "Gradient Starvation: A Learning Proclivity in Neural Networks", NeurIPS 2021,
        arXiv:2011.09468.
    """
    y = _signs(labels)
    if len(y) > _MOST_SAMPLES:
        raise ValueError(f"x must have at most {_MOST_SAMPLES} samples, got {len(y)}; a random subset serves as well")
    ntk = NTK(model, x)
    if ntk.shape[0] != len(y):
        raise ValueError(f"model must have one output per label, got {ntk.shape[0]} outputs for {len(y)} labels")
    kernel = ntk.to_dense().detach().to(y) * y[:, None] * y
    values, vectors = torch.linalg.eigh((kernel + kernel.T) / 2)
    directions = vectors.flip(1)
    turn = torch.where(directions.sum(0) < 0, -1.0, 1.0)
    return directions * turn, values.flip(0).clamp(min=0).sqrt()


def responses(
    logits: Float[Tensor, "n *one"], labels: Shaped[Tensor, " n"], directions: Float[Tensor, "n k"]
) -> Float[Tensor, " k"]:
    r"""Return the response to each feature, :math:`z = U^\top Y \hat y`.

    Args:
        logits: one score a sample.
        labels: -1 or 1 for each sample.
        directions: columns are features, see :func:`ntk_features`.

    Raises:
        ValueError: if ``labels`` are not -1 and 1, or sizes differ.

    References:
        Pezeshki et al., NeurIPS 2021, arXiv:2011.09468.
    """
    y = _signs(labels)
    if logits.numel() != len(y) or directions.shape[0] != len(y):
        sizes = f"{tuple(logits.shape)} and {tuple(directions.shape)}"
        raise ValueError(f"logits and directions must have one row for each of {len(y)} labels, got {sizes}")
    return directions.to(y).T @ (y * logits.reshape(-1).to(y))


def ridge_fixed_point(
    kernel: Float[Tensor, "n n"], lam: float, tol: float = 1e-12, max_iter: int = 200
) -> Float[Tensor, " n"]:
    r"""Return the margins that cross entropy with a penalty on the weights settles at.

    The minimum of :math:`\sum_i \log(1 + e^{-r_i}) + \frac{\lambda}{2} \lVert\theta\rVert^2` has

    .. math:: r = \frac{1}{\lambda} K \sigma(-r), \qquad \theta = \frac{1}{\lambda} \Phi^\top Y \sigma(-r)

    and is found by damped Newton steps on the margins, which stay well conditioned where the dual variables
    :math:`\alpha = \sigma(-r)` come near 0.

    Args:
        kernel: :math:`K = Y\Phi\Phi^\top Y`, symmetric and positive semidefinite.
        lam: weight of the penalty, for a loss that is a sum over samples.
        tol: largest residual of the equation, relative to the size of its terms.
        max_iter: most Newton steps.

    Raises:
        ValueError: if ``kernel`` is not a finite symmetric matrix without negative eigenvalues or ``lam`` is not
            positive.
        NotConverged: if ``max_iter`` steps do not suffice.

    References:
        Pezeshki et al., NeurIPS 2021, arXiv:2011.09468.

    Example:
        >>> ridge_fixed_point(torch.tensor([[4.0]]), lam=0.01)
        tensor([4.4805], dtype=torch.float64)
    """
    _require_positive(lam)
    scaled = _positive_semidefinite(kernel) / lam
    eye = torch.eye(len(scaled), dtype=scaled.dtype, device=scaled.device)
    r = torch.full_like(scaled[0], 5.0)
    residual = r - scaled @ torch.sigmoid(-r)
    for _ in range(max_iter):
        slope = torch.sigmoid(r) * torch.sigmoid(-r)
        step = torch.linalg.solve(eye + scaled * slope, residual)
        shorter = _shorten(scaled, r, residual, step)
        if shorter is None:  # at rounding error: quadratic convergence makes the last steps cheap
            break
        r, residual = shorter
    size = torch.maximum(r.abs(), scaled.abs() @ torch.sigmoid(-r)).max()
    if residual.abs().max() > tol * size:
        raise NotConverged(f"no fixed point to {tol} within {max_iter} Newton steps", float(residual.norm()))
    return r


def _shorten(scaled: Tensor, r: Tensor, residual: Tensor, step: Tensor) -> tuple[Tensor, Tensor] | None:
    """Halve a Newton step until the residual falls; the Jacobian is never singular, so that only rounding stops it."""
    before = residual.norm()
    for _ in range(60):
        trial = r - step
        found = trial - scaled @ torch.sigmoid(-trial)
        if found.norm() < before:
            return trial, found
        step = step / 2
    return None


def decoupled_fixed_point(kernel: Float[Tensor, "n n"], lam: float) -> Float[Tensor, " n"]:
    r"""Return the margins that cross entropy with a penalty on the logits (spectral decoupling) settles at.

    Each margin of :math:`\sum_i \log(1 + e^{-r_i}) + \frac{\lambda}{2} \lVert\hat y\rVert^2` solves

    .. math:: \lambda r (1 + e^r) = 1

    by itself, whatever the strengths of the features, as long as they can produce any margins.

    Args:
        kernel: :math:`K = Y\Phi\Phi^\top Y`, symmetric and positive definite; only its size and its rank matter.
        lam: weight of the penalty, for a loss that is a sum over samples; twice the ``coef`` of
            :func:`poise.losses.spectral_decoupling`, which is for a mean.

    Raises:
        ValueError: if ``kernel`` is not a finite symmetric matrix of full rank or ``lam`` is not positive.

    References:
        Pezeshki et al., NeurIPS 2021, arXiv:2011.09468.
    """
    _require_positive(lam)
    kernel = _positive_semidefinite(kernel)
    rank = int(torch.linalg.matrix_rank(kernel, hermitian=True))
    if rank < len(kernel):
        raise ValueError(f"kernel must have full rank {len(kernel)}, got rank {rank}: features cannot give any margins")
    # In log r: a rising function without overflow. 1 + e^r is at least 2, and at most 1 + e where r < 1.
    low, high = min(0.0, -math.log(lam) - math.log1p(math.e)), -math.log(2 * lam)
    root = math.exp(brentq(lambda t: math.log(lam) + t + _softplus(math.exp(t)), low - 1, high + 1, xtol=1e-15))
    return torch.full_like(kernel[0], root)


def sensitivity(directions: Float[Tensor, "n n"], strengths: Float[Tensor, " n"], lam: float) -> Float[Tensor, "n n"]:
    r"""Return how each response at the ridge fixed point changes with the squared strength of each feature.

    Implicit differentiation of :math:`z = \frac{1}{\lambda} S^2 U^\top \alpha` gives, with
    :math:`M = U^\top \mathrm{diag}(\alpha(1 - \alpha))\, U`,

    .. math:: \frac{\partial z}{\partial s^2} = \frac{1}{\lambda} \Big(I + \frac{1}{\lambda} S^2 M\Big)^{-1}
        \mathrm{diag}(U^\top \alpha)

    A negative entry off the diagonal is starvation. It needs features with common samples: for :math:`U = I` there are
    none. With a penalty on the logits all entries are 0.

    Args:
        directions: orthogonal matrix, columns are features, see :func:`ntk_features`.
        strengths: their strengths.
        lam: weight of the penalty on the weights, for a loss that is a sum over samples.

    Returns:
        Entry (i, j) is the derivative of response i in the squared strength of feature j.

    Raises:
        ValueError: if ``directions`` is not orthogonal, sizes differ, or ``lam`` is not positive.

    References:
        Pezeshki et al., NeurIPS 2021, arXiv:2011.09468.
    """
    u = directions.double()
    squares = strengths.to(u).square()
    if u.ndim != 2 or u.shape != (len(squares), len(squares)):
        raise ValueError(f"directions must be square, as many as {len(squares)} strengths, got {tuple(u.shape)}")
    eye = torch.eye(len(u), dtype=u.dtype, device=u.device)
    off = float((u.T @ u - eye).abs().max())
    if not off < 1e-4:
        raise ValueError(f"directions must be orthogonal, but their products differ from the identity by {off:.2g}")
    alpha = torch.sigmoid(-ridge_fixed_point((u * squares) @ u.T, lam))
    overlap = u.T @ ((alpha * (1 - alpha))[:, None] * u)
    return torch.linalg.solve(eye + squares[:, None] * overlap / lam, torch.diag(u.T @ alpha) / lam)


def _softplus(r: float) -> float:
    return r + math.log1p(math.exp(-r))


def _signs(labels: Tensor) -> Tensor:
    y = labels.detach().double()
    if y.ndim != 1 or not bool((y.abs() == 1).all()):
        raise ValueError(f"labels must be one -1 or 1 per sample, got {_short(labels)}")
    return y


def _short(x: Tensor) -> str:
    return f"shape {tuple(x.shape)}" + (f" with values in [{x.min()}, {x.max()}]" if x.numel() else "")


def _require_positive(lam: float) -> None:
    if not (math.isfinite(lam) and lam > 0):
        raise ValueError(f"lam must be positive and finite, got {lam!r}")


def _positive_semidefinite(kernel: Tensor) -> Tensor:
    """The kernel in float64, symmetric to the last bit."""
    wide = kernel.detach().double()
    if wide.ndim != 2 or wide.shape[0] != wide.shape[1] or not len(wide) or not bool(torch.isfinite(wide).all()):
        raise ValueError(f"kernel must be a finite square matrix, got shape {tuple(kernel.shape)}")
    rounding = 1e3 * torch.finfo(kernel.dtype if kernel.is_floating_point() else torch.float64).eps * wide.abs().max()
    if bool((wide - wide.T).abs().max() > rounding):
        raise ValueError("kernel must be symmetric")
    wide = (wide + wide.T) / 2
    least = torch.linalg.eigvalsh(wide)[0]
    if bool(least < -rounding * len(wide)):
        raise ValueError(f"kernel must have no negative eigenvalue, got {float(least):.3g}")
    return wide
