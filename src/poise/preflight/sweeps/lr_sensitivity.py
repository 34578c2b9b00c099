"""Learning-rate sensitivity: how much loss a wrong learning rate costs."""

from __future__ import annotations

from dataclasses import dataclass

from poise.preflight.sweeps.lr_curve import LRCurve


@dataclass(frozen=True, slots=True)
class LRSensitivity:
    """Learning-rate sensitivity of a curve.

    Args:
        value: mean over seeds, in units of the loss.
        per_seed: one value per seed.
        meaningless: true if every run diverged; ``value`` is then zero and has no meaning.
    """

    value: float
    per_seed: tuple[float, ...]
    meaningless: bool


def lr_sensitivity(curve: LRCurve, lr_range: tuple[float, float] | None = None) -> LRSensitivity:
    r"""Measure how much the final loss suffers, on average, when the learning rate is not the best one.

    .. math:: S = \frac{1}{|G|} \sum_{\eta \in G} \min(\ell(\eta), \ell_0) - \ell^*, \qquad
        \ell^* = \min_{\eta \in G} \ell(\eta)

    :math:`\ell_0` is the loss at initialisation; a diverged run counts as :math:`\ell_0`. The grid :math:`G` should be
    even in :math:`\log \eta` and span the same decades in what is compared; if one optimum lies elsewhere, shift the
    decades with it. The absolute loss does not enter :math:`S` (which is 0 for a model that never learns): read the
    curves and :math:`\ell^*` too, and compare only settings in which a learning rate means the same.

    Args:
        curve: losses over learning rates; :math:`S` is computed for each seed by itself.
        lr_range: lowest and highest learning rate to use, both included; all by default.

    Raises:
        ValueError: if fewer than 3 learning rates are in the range.

    References:
        Wortsman et al., "Small-scale proxies for large-scale Transformer training instabilities", ICLR 2024,
        arXiv:2309.14322.

    Example:
        >>> curve = LRCurve([0.01, 0.1, 1.0], losses=[2.0, 3.0, float("nan")], init_losses=4.0)
        >>> lr_sensitivity(curve).value
        1.0
    """
    if lr_range is not None:
        curve = curve.within(*lr_range)
    if curve.lrs.size < 3:
        raise ValueError(f"curve must have at least 3 learning rates in the range, got {curve.lrs.tolist()}")
    losses = curve.effective_losses
    per_seed = losses.mean(axis=0) - losses.min(axis=0)
    return LRSensitivity(float(per_seed.mean()), tuple(per_seed.tolist()), bool(curve.diverged.all()))
