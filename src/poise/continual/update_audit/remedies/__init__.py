"""Remedies of the audit of an update, one file each."""

from poise.continual.update_audit.remedies import (
    class_mean_rows,
    freeze_old_rows,
    low_rank_update,
    lower_update_lr,
    project_gradients,
    reweight_old_data,
    serve_average,
    shorter_average,
)
from poise.rules.documented_remedy import DocumentedRemedy

_MODULES = (
    lower_update_lr,
    reweight_old_data,
    class_mean_rows,
    freeze_old_rows,
    serve_average,
    shorter_average,
    low_rank_update,
    project_gradients,
)

REMEDIES: dict[str, DocumentedRemedy] = {module.REMEDY.name: module.REMEDY for module in _MODULES}
"""By name."""

__all__ = ["REMEDIES"]
