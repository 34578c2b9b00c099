"""Findings of an audit: at or above the edge, and noise that is too much for the batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report import Evidence, Finding
from poise.report.words import number

if TYPE_CHECKING:
    from poise.dynamics.audit_report import AuditFacts

_SURE, _APPROXIMATE = 0.95, 0.7


def audit_findings(facts: AuditFacts) -> list[Finding]:
    """Return what stands out, the most important first.

    Args:
        facts: what was measured.
    """
    found = [_edge(facts), _noise(facts), _unconverged(facts)]
    return [finding for finding in found if finding is not None]


def _edge(facts: AuditFacts) -> Finding | None:
    distance = facts.distance
    if distance.where == "below":
        return None
    evidence = (Evidence("sharpness", facts.decisive.value, distance.edge),)
    first = max(facts.directions, key=lambda name: facts.directions[name])
    limit = number(facts.largest_lr[1])
    if distance.where == "above":
        summary = (
            f"The sharpness is {number(distance.ratio)} times what {facts.name} bears at learning rate "
            f"{number(facts.lr)}: distances along the sharpest direction grow with every step. Up to {limit} is stable."
        )
        return Finding("above_edge_of_stability", "error", _SURE, summary, (first,), evidence=evidence)
    summary = (
        f"The sharpness is about at the edge ({number(distance.ratio)} of it; the edge itself is at learning rate "
        f"{limit}). Full-batch training often stays here of itself; a higher learning rate, or a jump of the "
        "sharpness, shows as a spike."
    )
    return Finding("at_edge_of_stability", "warning", _SURE, summary, (first,), evidence=evidence)


def _noise(facts: AuditFacts) -> Finding | None:
    noise = facts.noise
    if noise is None or noise.lr is None or noise.stable is not False or facts.batch_size == facts.n:
        return None
    if noise.lr > noise.lr_gd:
        return None  # not a matter of noise
    limit = noise.lr_exact if noise.lr_exact is not None else min(noise.lr_gd, noise.lr_moment)
    least = noise.batch_min(noise.lr)
    cure = f"batches of at least {least} are stable" if least is not None else "no batch size is stable there"
    kind = "the exact limit" if noise.lr_exact is not None else "a bound on the limit"
    summary = (
        f"With batches of {noise.batch_size}, {kind} in mean square is {number(limit)}, below the learning rate "
        f"{number(noise.lr)}; at that learning rate {cure}."
    )
    probability = _APPROXIMATE if noise.approximate else _SURE
    return Finding(
        "unstable_with_batch_noise", "warning", probability, summary, evidence=(Evidence("lr", noise.lr, limit),)
    )


def _unconverged(facts: AuditFacts) -> Finding | None:
    if facts.decisive.converged:
        return None
    value = facts.decisive
    summary = (
        f"The search for the sharpness was stopped: it is at least {number(value.value - value.error_bound)}, and may "
        "be above the range given. Give more seconds, or fewer examples."
    )
    return Finding("sharpness_uncertain", "warning", _SURE, summary, evidence=(Evidence("sharpness", value.value),))
