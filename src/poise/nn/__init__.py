"""Layers that keep training stable."""

from poise.nn.logit_scale import transplant_logit_scale
from poise.nn.qk_norm import QKNorm

__all__ = ["QKNorm", "transplant_logit_scale"]
