"""Remedies: changes that poise applies to a live run from outside, one file each.

A new remedy is one new file named after it, with the sections of the others in its docstring, and one new line here.
"""

from __future__ import annotations

from poise.doctor.remedies.adam_eps import AdamEps
from poise.doctor.remedies.beta2 import Beta2
from poise.doctor.remedies.clip_grad_norm import ClipGradNorm
from poise.doctor.remedies.clip_update_rms import ClipUpdateRMS
from poise.doctor.remedies.ema import EMA
from poise.doctor.remedies.logit_soft_cap import LogitSoftCap
from poise.doctor.remedies.lr_scale import LRScale
from poise.doctor.remedies.ortho_grad import OrthoGrad
from poise.doctor.remedies.qk_norm import QKNorm
from poise.doctor.remedies.remedy import Remedy, Values
from poise.doctor.remedies.skip_bad_batches import SkipBadBatches
from poise.doctor.remedies.stablemax import StableMax
from poise.doctor.remedies.tangential_updates import TangentialUpdates
from poise.doctor.remedies.warmup import Warmup
from poise.doctor.remedies.weight_decay import WeightDecay
from poise.doctor.remedies.z_loss import ZLoss
from poise.tools.nearest_name import did_you_mean

__all__ = ["REMEDIES", "Remedy", "Values", "parse_remedy"]

REMEDIES: dict[str, type[Remedy]] = {
    remedy.name: remedy
    for remedy in (
        LRScale,
        Warmup,
        ClipGradNorm,
        ClipUpdateRMS,
        AdamEps,
        Beta2,
        WeightDecay,
        ZLoss,
        LogitSoftCap,
        QKNorm,
        StableMax,
        OrthoGrad,
        TangentialUpdates,
        EMA,
        SkipBadBatches,
    )
}


def parse_remedy(spec: str) -> Remedy:
    """Make the remedy that the command line names.

    Args:
        spec: ``"NAME"`` or ``"NAME=VALUE"``, for example ``"lr_scale=0.3"``; hyphens and underscores are equal.

    Raises:
        ValueError: if there is no such remedy (the nearest names are offered) or the value is not one it takes.
    """
    name, equals, text = spec.partition("=")
    kind = _named(name.strip().replace("-", "_").lower(), name)
    if not equals:
        return kind()
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"value of remedy {kind.name} must be {kind.values}, got {text!r}") from None
    return kind(value)


def _named(name: str, given: str) -> type[Remedy]:
    if name in REMEDIES:
        return REMEDIES[name]
    raise ValueError(f"remedy {given!r} is unknown: {did_you_mean(name, REMEDIES)}")
