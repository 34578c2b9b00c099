"""Remedies of the audit before the first step that poise does not apply to live runs, one file each."""

from poise.preflight.init_audit.remedies import (
    add_layer_norm,
    add_qk_norm,
    grad_scaler,
    he_init,
    scale_embedding,
    spike_free_init,
    stabilize_residuals,
    swap_recurrent,
    zero_bias,
)
from poise.rules.documented_remedy import DocumentedRemedy

_MODULES = (
    stabilize_residuals,
    add_layer_norm,
    he_init,
    scale_embedding,
    spike_free_init,
    add_qk_norm,
    zero_bias,
    swap_recurrent,
    grad_scaler,
)

REMEDIES: dict[str, DocumentedRemedy] = {module.REMEDY.name: module.REMEDY for module in _MODULES}
"""By name."""

__all__ = ["REMEDIES"]
