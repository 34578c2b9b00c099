"""Losses and regularisers that keep training stable."""

from typing import TYPE_CHECKING

from poise.tools.lazy_front import lazy_front

if TYPE_CHECKING:
    from poise.losses.masked_cross_entropy import MaskedCrossEntropyLoss, build_mask, masked_logits
    from poise.losses.soft_targets import SoftTargetLoss
    from poise.losses.spectral_decoupling import SpectralDecoupling, class_centered_decoupling, spectral_decoupling
    from poise.losses.spectral_regularizer import SpectralRegularizer
    from poise.losses.stablemax import StableMaxCrossEntropy, log_stablemax, stablemax, stablemax_cross_entropy
    from poise.losses.z_loss import ZLoss, cross_entropy_with_z_loss, z_loss

__all__ = [
    "MaskedCrossEntropyLoss",
    "SoftTargetLoss",
    "SpectralDecoupling",
    "SpectralRegularizer",
    "StableMaxCrossEntropy",
    "ZLoss",
    "build_mask",
    "class_centered_decoupling",
    "cross_entropy_with_z_loss",
    "log_stablemax",
    "masked_logits",
    "spectral_decoupling",
    "stablemax",
    "stablemax_cross_entropy",
    "z_loss",
]

lazy_front(__name__)
