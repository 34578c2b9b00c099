"""The learning rate is at the edge of stability.

## What it is
The sharpness equals the threshold that the learning rate sets, within the error of the measurement.

## Why it hurts
Often it does not: full-batch training moves to this edge by itself and stays there while the loss falls. But nothing is
left in reserve: a higher learning rate, or a batch or a phase of training that is sharper, shows as a spike.

## How it is detected
The range of sharpness over threshold (error bound of the Lanczos process, other examples) contains 1.

## What cures it
Nothing, if the loss falls and does not spike. Else a slightly lower learning rate, or gradient clipping for the spikes.

## References
- Cohen et al., *Gradient descent on neural networks typically occurs at the edge of stability*, ICLR 2021,
  arXiv:2103.00065
- Cohen et al., *Adaptive gradient methods at the edge of stability*, 2022, arXiv:2207.14484
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule
from poise.tools.number import number

if TYPE_CHECKING:
    from poise.dynamics.training_audit.facts import TrainingFacts


_PROBABILITY = 0.95


def find(facts: TrainingFacts) -> list[Finding]:
    """Find a sharpness that does not differ measurably from the optimizer's threshold."""
    distance = facts.distance
    if distance.where != "at":
        return []
    first = max(facts.directions, key=lambda name: facts.directions[name])
    return [
        RULE.finding(
            "warning",
            _PROBABILITY,
            f"The sharpness is about at the edge ({number(distance.ratio)} of it; the edge itself is at learning rate "
            f"{number(facts.largest_lr[1])}). Full-batch training often stays here of itself; a higher learning rate, "
            "or a jump of the sharpness, shows as a spike.",
            where=(first,),
            evidence=(Evidence("sharpness", facts.decisive.value, distance.edge),),
        )
    ]


RULE: Rule[TrainingFacts] = Rule(
    id="at_edge_of_stability",
    title="The learning rate is at the edge of stability",
    find=find,
    doc=__doc__,
    family="learning rate",
)
