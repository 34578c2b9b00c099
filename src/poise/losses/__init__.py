"""Losses and regularisers that keep training stable."""

from poise.losses.z_loss import ZLoss, cross_entropy_with_z_loss, z_loss

__all__ = ["ZLoss", "cross_entropy_with_z_loss", "z_loss"]
