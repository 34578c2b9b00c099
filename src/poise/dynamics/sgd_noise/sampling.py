"""How mini-batches are drawn, and the effect on the second moment of SGD."""

from __future__ import annotations

import math
from typing import Literal, get_args

Sampling = Literal["without", "replacement", "bernoulli"]
SAMPLINGS: tuple[Sampling, ...] = get_args(Sampling)


def noise_coefficients(n: int, batch_size: int, sampling: Sampling) -> tuple[float, float]:
    r"""Return :math:`(\alpha, \beta)` of one mini-batch.

    With :math:`H_B` the mean of the batch's matrices :math:`H_i` and :math:`H` that of all,

    .. math:: E[H_B M H_B] = \alpha H M H + \beta \tfrac1n \sum_i H_i M H_i

    for any matrix M. A full batch drawn without replacement has (1, 0).

    Args:
        n: number of examples.
        batch_size: examples a step; the expected number under ``"bernoulli"``.
        sampling: ``"without"`` replacement, with ``"replacement"``, or ``"bernoulli"``: every example by itself with
            probability ``batch_size / n``, the sum divided by ``batch_size``.

    Raises:
        ValueError: if ``batch_size`` is outside 1..n or ``sampling`` is unknown.
    """
    check_batch(n, batch_size, sampling)
    if sampling == "replacement":
        return 1.0 - 1.0 / batch_size, 1.0 / batch_size
    if batch_size == n:
        return 1.0, 0.0
    if sampling == "bernoulli":
        return 1.0, (n - batch_size) / (n * batch_size)
    beta = (n - batch_size) / (batch_size * (n - 1))
    return 1.0 - beta, beta


def smallest_batch_with(beta: float, n: int, sampling: Sampling) -> int | None:
    """Return the smallest batch size whose noise coefficient is at most ``beta``; ``None`` if that of n is larger.

    Args:
        beta: largest coefficient allowed, not negative.
        n: number of examples.
        sampling: how batches are drawn, as in :func:`noise_coefficients`.
    """
    if beta < 0:
        return None
    if sampling == "replacement":
        size = 1.0 / beta if beta > 0 else math.inf
    elif sampling == "bernoulli":
        size = n / (1.0 + n * beta)
    else:
        size = n / (1.0 + (n - 1) * beta)
    if size > n * (1 + 1e-9):
        return None
    return max(1, math.ceil(size * (1 - 1e-9)))  # a size that is whole but for rounding is not rounded up


def check_batch(n: int, batch_size: int, sampling: str) -> None:
    """See that a batch can be drawn.

    Raises:
        ValueError: if the batch size is not in 1..n or the sampling is unknown.
    """
    if sampling not in SAMPLINGS:
        raise ValueError(f"sampling must be one of {SAMPLINGS}, got {sampling!r}")
    if not (1 <= batch_size <= n and batch_size == int(batch_size)):
        raise ValueError(f"batch_size must be a whole number from 1 to the number of examples {n}, got {batch_size!r}")
