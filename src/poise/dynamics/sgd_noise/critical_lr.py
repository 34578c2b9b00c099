"""Largest stable learning rate of SGD at a minimum, by four methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from torch import nn

from poise.dynamics.sgd_noise.coherence import Coherence, coherence_of_gram
from poise.dynamics.sgd_noise.per_example_factors import PerExampleFactors, PerExampleGram, per_example_gram
from poise.dynamics.sgd_noise.sampling import Sampling, check_batch
from poise.dynamics.sgd_noise.second_moment_operator import SecondMomentOperator

Method = Literal["exact", "coherence", "divergence", "gd"]
METHODS: tuple[Method, ...] = get_args(Method)


def critical_lr(
    model: nn.Module,
    loss_fn: Any,
    data: Any,
    *,
    batch_size: int,
    method: Method | Literal["all"] = "exact",
    sampling: Sampling = "bernoulli",
    params: Sequence[str] | None = None,
    chunk_size: int = 64,
    max_bytes: int = 2**30,
) -> float | dict[str, float]:
    """Return the learning rate at which SGD stops being stable at the model's present weights.

    ``"gd"`` is the limit of full batches, 2 / largest eigenvalue. ``"exact"`` is the limit in mean square,
    ``"coherence"`` an estimate of it, ``"divergence"`` a bound above which the mean square certainly grows; the last
    two hold for batches drawn by independent coins and do not depend on ``sampling``. A typical run may survive above
    all but the first: see :func:`poise.dynamics.lyapunov_exponent`.

    Args:
        model: float32 or float64, at a minimum that fits the data.
        loss_fn: a criterion such as ``nn.CrossEntropyLoss()``, or a :class:`poise.curvature.Supervised`.
        data: a batch or an iterable of batches.
        batch_size: examples a step, from 1 to n.
        method: ``"exact"``, ``"coherence"``, ``"divergence"``, ``"gd"``, or ``"all"`` for a dict of these.
        sampling: how batches are drawn, see :func:`~poise.dynamics.sampling.noise_coefficients`.
        params: names of parameters or of modules; by default all that require gradients.
        chunk_size: most examples at once.
        max_bytes: most memory for factors; :func:`sgd_stability` has bounds for what is larger.

    Raises:
        ValueError: if an argument is out of range, or as :func:`coherence`.

    References:
        Dexter et al., ICLR 2024, arXiv:2401.12332. Mulayoff and Michaeli, COLT 2024, arXiv:2306.07850.
    """
    if method not in (*METHODS, "all"):
        raise ValueError(f"method must be one of {(*METHODS, 'all')}, got {method!r}")
    factors = PerExampleFactors(model, loss_fn, data, params)
    check_batch(factors.n, batch_size, sampling)
    gram = per_example_gram(factors, chunk_size=chunk_size, max_bytes=max_bytes)
    found = coherence_of_gram(gram)
    if method == "all":
        return {name: _limit(name, gram, found, batch_size, sampling) for name in METHODS}
    return _limit(method, gram, found, batch_size, sampling)


def _limit(method: Method, gram: PerExampleGram, found: Coherence, batch_size: int, sampling: Sampling) -> float:
    if method == "gd":
        return found.lr_gd
    if method == "coherence":
        return found.lr_coherence(batch_size)
    if method == "divergence":
        return found.lr_divergence(batch_size)
    return SecondMomentOperator.from_gram(gram.gram, gram.n, 1.0, batch_size, sampling).critical_lr()
