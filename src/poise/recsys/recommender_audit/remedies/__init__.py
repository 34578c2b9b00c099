"""What stabilises recommendations, one a file."""

from poise.recsys.recommender_audit.remedies import (
    fixed_seeds,
    rank_preserving_fine_tuning,
    seed_average,
    sorted_rows,
    warm_start,
)
from poise.rules.documented_remedy import DocumentedRemedy

_MODULES = (rank_preserving_fine_tuning, warm_start, seed_average, sorted_rows, fixed_seeds)

REMEDIES: dict[str, DocumentedRemedy] = {module.REMEDY.name: module.REMEDY for module in _MODULES}
"""By name."""

__all__ = ["REMEDIES"]
