"""Losses and regularisers that keep training stable."""

from typing import TYPE_CHECKING

from poise._lazy import attach

if TYPE_CHECKING:
    from poise.losses.spectral_decoupling import SpectralDecoupling, class_centered_decoupling, spectral_decoupling
    from poise.losses.stablemax import StableMaxCrossEntropy, log_stablemax, stablemax, stablemax_cross_entropy
    from poise.losses.z_loss import ZLoss, cross_entropy_with_z_loss, z_loss

__all__ = [
    "SpectralDecoupling",
    "StableMaxCrossEntropy",
    "ZLoss",
    "class_centered_decoupling",
    "cross_entropy_with_z_loss",
    "log_stablemax",
    "spectral_decoupling",
    "stablemax",
    "stablemax_cross_entropy",
    "z_loss",
]

attach(__name__)
