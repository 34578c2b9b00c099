"""No human-labelled rows are added, so nothing bounds the drift.

## What it is
Each round adds rows that the classifier labelled, and none that a person labelled.

## Why it hurts
The share of human rows falls to 0, and with it what holds the statistic in place: the bound grows like the logarithm of
the size of the pool.

## How it is detected
The number of human rows per round is 0 and that of model-labelled ones is not.

## What cures it
Label some rows by hand in every round; the report says how many keep the drift within the tolerance.

## References
- Taori and Hashimoto, *Data feedback loops: model-driven amplification of dataset biases*, ICML 2023, arXiv:2209.03942
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Finding
from poise.rules.rule import Rule

if TYPE_CHECKING:
    from poise.loops.loop_audit.facts import LoopFacts


def find(facts: LoopFacts) -> list[Finding]:
    """Find that no human rows are added."""
    if facts.m or not facts.k:
        return []
    summary = f"Each round adds {facts.k} rows with the classifier's labels and none with true ones."
    return [RULE.finding("warning", 1.0, summary)]


RULE: Rule[LoopFacts] = Rule(
    id="no_human_rows",
    title="No human-labelled rows are added",
    find=find,
    doc=__doc__,
    exact=True,
    remedies=("more_human_rows",),
    family="drift",
)
