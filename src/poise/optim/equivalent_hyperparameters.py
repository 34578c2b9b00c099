"""Learning rates, weight decays and weight norms that train a scale-invariant weight in exactly the same way."""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

from poise.optim.geometry import Rule, check_rule

_POWERS: dict[Rule, tuple[int, int]] = {"sgd": (2, 2), "adam": (1, 2), "adamw": (1, 1), "independent_adamw": (1, 0)}
"""If the weight is a times as large: lr grows with this power of a, weight decay falls with that one."""


class Hyperparameters(NamedTuple):
    """A learning rate, a weight decay and the norm that the weight starts from.

    Attributes:
        lr: learning rate.
        weight_decay: weight decay, in the sense of the update rule.
        norm: 2-norm of the weight at the start.
    """

    lr: float
    weight_decay: float
    norm: float


def equivalent_hyperparameters(
    rule: Rule, lr: float, weight_decay: float, scale: float, norm: float = 1.0
) -> Hyperparameters:
    r"""Return the settings under which a scale-invariant weight, ``scale`` times as large, moves as it did.

    Its gradient is then :math:`1/a` of what it was, so that the same directions follow, step by step and exactly, from

    ======================  ==========================  ===========================
    rule                    learning rate               weight decay
    ======================  ==========================  ===========================
    ``sgd`` (any momentum)  :math:`a^2 \eta`            :math:`\lambda / a^2`
    ``adam`` (L2 penalty)   :math:`a \eta`              :math:`\lambda / a^2`
    ``adamw``               :math:`a \eta`              :math:`\lambda / a`
    ``independent_adamw``   :math:`a \eta`              :math:`\lambda`
    ======================  ==========================  ===========================

    (Adam and similar optimizers at an epsilon far below the gradients.) Hence "less decay" and "a larger learning rate"
    can be one and the same change.

    Args:
        rule: the update rule, see :data:`poise.optim.geometry.Rule`.
        lr: learning rate.
        weight_decay: weight decay in the optimizer's own units.
        scale: :math:`a`, how much larger the weight starts.
        norm: the norm that it starts from now.

    Raises:
        ValueError: if ``rule`` is unknown, ``scale``, ``norm`` or ``lr`` is not positive or ``weight_decay`` negative.

    References:
        van Laarhoven, "L2 Regularization versus Batch and Weight Normalization", 2017, arXiv:1706.05350.

    Example:
        >>> equivalent_hyperparameters("sgd", lr=0.1, weight_decay=5e-4, scale=2.0)
        Hyperparameters(lr=0.4, weight_decay=0.000125, norm=2.0)
    """
    _check(rule, lr, weight_decay)
    for name, value in {"scale": scale, "norm": norm}.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value!r}")
    grows, falls = _POWERS[rule]
    return Hyperparameters(lr * scale**grows, weight_decay / scale**falls, norm * scale)


def equilibrium_norm(
    rule: Rule,
    lr: float,
    weight_decay: float,
    *,
    grad_power: float | None = None,
    numel: int | None = None,
    momentum: float = 0.0,
) -> float:
    r"""Return the norm at which decay takes from a scale-invariant weight what the steps add.

    With :math:`G = E[\lVert\nabla f\rVert^2 \lVert w\rVert^2]`, which does not depend on the norm,

    .. math:: \lVert w\rVert^4 = \frac{\eta G}{2\lambda - \eta\lambda^2}

    for SGD. The entries of Adam's step have about unit variance, hence :math:`\lVert w\rVert^2 = \eta d / (2\lambda -
    \eta\lambda^2)` for AdamW with :math:`d` weights, and :math:`\eta^2 d / (2\lambda - \lambda^2)` with independent
    decay. Momentum :math:`\mu` counts as :math:`\eta / (1 - \mu)` (leading order, SGD only). The norm comes near it
    within a few times :math:`1 / (2\eta\lambda)` steps (:math:`1/(2\lambda)` with independent decay).

    Args:
        rule: the update rule, see :data:`poise.optim.geometry.Rule`.
        lr: learning rate.
        weight_decay: weight decay in the optimizer's own units; 0 gives infinity and a warning.
        grad_power: :math:`G`, needed for ``"sgd"``.
        numel: :math:`d`, needed for ``"adamw"`` and ``"independent_adamw"``.
        momentum: of SGD.

    Raises:
        ValueError: if a number is out of range, one that the rule needs is missing, or the rule is ``"adam"``: a
            penalty that is normalised together with the gradient has no closed form.

    References:
        van Laarhoven, "L2 Regularization versus Batch and Weight Normalization", 2017, arXiv:1706.05350.

    Example:
        >>> equilibrium_norm("adamw", lr=1e-3, weight_decay=0.1, numel=4096)
        4.525...
    """
    _check(rule, lr, weight_decay)
    if rule == "adam":
        raise ValueError("rule must not be 'adam': its penalty is normalised too, and the norm has no closed form")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must lie in [0, 1), got {momentum!r}")
    if momentum and rule != "sgd":
        raise ValueError(f"momentum belongs to rule 'sgd', got {momentum!r} with {rule!r}")
    needed = {"grad_power": grad_power} if rule == "sgd" else {"numel": numel}
    for name, value in needed.items():
        if value is None or not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite for rule {rule!r}, got {value!r}")
    if weight_decay == 0:
        warnings.warn("weight_decay is 0: the norm grows without bound", UserWarning, stacklevel=2)
        return math.inf
    fraction = weight_decay if rule == "independent_adamw" else lr * weight_decay  # that one step takes
    if rule == "sgd":
        fraction = fraction / (1 - momentum)
    if not fraction < 2:
        raise ValueError(f"lr and weight_decay must take less than twice the weight per step, got {fraction:g} times")
    taken = 2 * fraction - fraction**2
    if rule == "sgd":
        assert grad_power is not None
        return ((lr / (1 - momentum)) ** 2 * grad_power / taken) ** 0.25
    assert numel is not None
    return (lr**2 * numel / taken) ** 0.5


def _check(rule: Rule, lr: float, weight_decay: float) -> None:
    check_rule(rule)
    if not 0 < lr < math.inf:
        raise ValueError(f"lr must be positive and finite, got {lr!r}")
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay must be finite and not negative, got {weight_decay!r}")
