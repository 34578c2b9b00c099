"""What a rule and a documented remedy are, and the one catalogue of all that poise can find and advise."""

from poise.rules.catalogue import Catalogue, catalogue
from poise.rules.documented_remedy import DocumentedRemedy, RemedyKind
from poise.rules.explain import explain
from poise.rules.rule import Rule, findings_of
from poise.rules.rule_set import RuleSet

__all__ = ["Catalogue", "DocumentedRemedy", "RemedyKind", "Rule", "RuleSet", "catalogue", "explain", "findings_of"]
