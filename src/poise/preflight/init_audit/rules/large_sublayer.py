r"""A sub-layer may multiply gradients many times.

## What it is
The weights of a feed-forward sub-layer are so large that its part of the Jacobian may outweigh the shortcut by far,
even on a stream of standard deviation 1.

## Why it hurts
The gradient of the first block is bounded by the product of the bounds of all sub-layers. Where each is far above 1,
sudden growth of the gradient norm is possible, and with it spikes of the loss.

## How it is detected
For x + W2 F(W1 norm(x)) with d by e weights of standard deviations s1 and s2, the Jacobian's norm is at most about
1 + s1 s2 (sqrt(d) + sqrt(e))^2 / s, with s the standard deviation of x (a gain of the norm and a factor on the branch
multiply the second term). A finding where that term would be 10 or more at s = 1: *info*, because it is a
bound; the measured gains are in the table by depth. PyTorch's own initialisation has 1.5 where e = 4 d, He's 9.

## What cures it
Smaller weights, as Takase et al. propose: standard deviation sqrt(2 / (5 d)), in the last layer of each branch divided
by the root of twice the number of blocks.

## References
- Takase et al., *Spike no more: stabilizing the pre-training of large language models*, 2025, arXiv:2312.16903
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule
from poise.tools.number import number

if TYPE_CHECKING:
    from poise.preflight.init_audit.facts import InitFacts


_LIMIT = 10.0  # of a branch's Jacobian on a stream of standard deviation 1
_PROBABILITY = 0.7


def find(facts: InitFacts) -> list[Finding]:
    """Find feed-forward sub-layers whose Jacobian may be large on a stream of standard deviation 1."""
    large = [bound for bound in facts.bounds if bound.branch >= _LIMIT]
    if not large:
        return []
    worst = max(large, key=lambda bound: bound.branch)
    total = sum(math.log10(bound.bound) for bound in facts.bounds)
    text = (
        f"The feed-forward part of {worst.name} may multiply gradients {number(worst.branch)} times on a stream of "
        f"standard deviation 1, and {number(worst.branch * worst.amplification)} times on this one. The bounds of "
        f"{len(facts.bounds)} such sub-layers multiply to 1e{total:+.0f}."
    )
    return [
        RULE.finding(
            "info",
            _PROBABILITY,
            text,
            where=tuple(bound.name for bound in large),
            evidence=(Evidence(f"sublayer_bound[{worst.name}]", worst.branch, _LIMIT),),
        )
    ]


RULE: Rule[InitFacts] = Rule(
    id="large_sublayer",
    title="A sub-layer may multiply gradients many times",
    find=find,
    doc=__doc__,
    family="gradients",
    remedies=("spike_free_init",),
)
