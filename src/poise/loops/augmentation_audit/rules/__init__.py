"""The rules of the audit of synthetic rows, one a file. A new rule is a new file and a new name here."""

from poise.loops.augmentation_audit.rules import (
    augmentation_hurts,
    collapsed_generator,
    gap_without_gain,
    memorising_generator,
    noise_explains_gain,
)
from poise.rules.rule_set import RuleSet

RULES = RuleSet(
    "augmentation audit",
    "loops",
    "`poise.loops.audit_augmentation`",
    (
        memorising_generator.RULE,
        collapsed_generator.RULE,
        augmentation_hurts.RULE,
        noise_explains_gain.RULE,
        gap_without_gain.RULE,
    ),
)

__all__ = ["RULES"]
