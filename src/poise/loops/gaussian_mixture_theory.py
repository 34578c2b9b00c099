"""What augmentation does to the mean of a Gaussian mixture, in closed form."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AugmentedMixture:
    r"""Expected negative log-likelihoods of a classifier that averages :math:`y x` over real and generated rows.

    Two balanced classes :math:`N(\pm\mu, \sigma^2 I_d)`; the generator has the class means and one pooled variance of m
    real rows, and adds gamma times as many.

    Attributes:
        gap: test less training loss on the augmented set, in nats.
        excess: test loss above that of the true mean.
    """

    gap: float
    excess: float


def gaussian_mixture_theory(d: int, m: int, gamma: float) -> AugmentedMixture:
    r"""Return the expected gap and excess of augmentation.

    .. math:: \frac dm \frac{1 + 2\gamma}{(1 + \gamma)^2}, \quad \frac d{2m} (1 + \frac\gamma{(1 + \gamma)^2}).

    The gap falls with gamma while the test loss never does: the training set becomes harder, the model no better.

    Args:
        d: dimension.
        m: real rows.
        gamma: synthetic rows for each real one.

    Raises:
        ValueError: if a number is out of range.

    References:
        Zheng, Wu, Li, "Toward understanding generative data augmentation", NeurIPS 2023, arXiv:2305.17476.

    Example:
        >>> gaussian_mixture_theory(50, 10, 1).gap
        3.75
    """
    if d < 1 or m < 1 or not gamma >= 0:
        raise ValueError(f"d and m must be at least 1 and gamma at least 0, got {d!r}, {m!r} and {gamma!r}")
    shrink = (1 + gamma) ** 2
    return AugmentedMixture(d / m * (1 + 2 * gamma) / shrink, d / (2 * m) * (1 + gamma / shrink))
