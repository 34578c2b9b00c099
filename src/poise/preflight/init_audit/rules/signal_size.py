"""How the size of a signal changes over depth, and where it leaves float16: for the rules of growth and decay."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from poise.report.finding import Severity
from poise.tools.number import number

if TYPE_CHECKING:
    from poise.preflight.init_audit.facts import InitFacts

LIMIT, GRAVE = 1e2, 1e6
"""Factors on the mean square over the whole depth, or their inverses."""


@dataclass(frozen=True, slots=True)
class SignalSize:
    """A signal whose size changes over depth.

    Attributes:
        ratio: mean square at the last depth over that at the first.
        grows: whether it grows, or overflows float16 inside the model.
        severity: of the finding.
        text: what happens, in words.
        where: the layer concerned.
    """

    ratio: float
    grows: bool
    severity: Severity
    text: str
    where: str


def signal_size(facts: InitFacts) -> SignalSize | None:
    """Return how the signal changes over depth; ``None`` if it keeps its size, or too little is known."""
    units, slope = facts.passed.units, facts.growth.forward_slope
    sizes = [unit.q for unit in units if math.isfinite(unit.q) and unit.q > 0]
    if slope is None or len(sizes) < 3:
        return None
    ratio = sizes[-1] / sizes[0]
    in_half = next((f for f in facts.failing if f.format == "float16" and f.what == "overflows"), None)
    inside = None if in_half is None else in_half.name
    if 1 / LIMIT < ratio < LIMIT and inside is None:
        return None
    depth, per = len(units), math.exp(slope)
    text = (
        f"The mean square of the signal {'grows' if per > 1 else 'shrinks'} by a factor of {number(per)} per "
        f"{facts.unit}, by {number(ratio)} over {depth} {facts.unit}s."
    )
    if in_half is not None and inside is not None:
        text += f" At depth {in_half.depth} of {depth} ({inside}) the signal overflows float16."
    elif in_half is not None:
        text += f" It would overflow float16 at depth {in_half.depth}."
    severity: Severity = "error" if not 1 / GRAVE < ratio < GRAVE else "warning"
    return SignalSize(ratio, ratio > 1 or inside is not None, severity, text, inside or units[-1].name)
