"""What keeps predictions stable under retraining, one a file."""

from poise.rules.documented_remedy import DocumentedRemedy
from poise.sensitivity.retraining_audit.remedies import stable_bagging

REMEDIES: dict[str, DocumentedRemedy] = {stable_bagging.REMEDY.name: stable_bagging.REMEDY}
"""By name."""

__all__ = ["REMEDIES"]
