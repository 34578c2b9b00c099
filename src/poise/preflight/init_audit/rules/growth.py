"""Shared by rules over depth: the sentence about the gain of a block, and the remedies that keep a size."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from poise.tools.number import number

if TYPE_CHECKING:
    from poise.preflight.init_audit.facts import InitFacts

GROWTH_REMEDIES = ("stabilize_residuals", "add_layer_norm", "he_init", "spike_free_init")
"""Remedies that keep signals and gradients at their size over depth."""


def growth_remedies(facts: InitFacts) -> tuple[str, ...]:
    """Return the remedies that fit the network: with or without shortcuts, with or without normalisations."""
    if facts.passed.residuals and not facts.passed.norms:
        return ("stabilize_residuals", "add_layer_norm")
    return ("add_layer_norm", "he_init") if not facts.passed.norms else ("spike_free_init",)


def gain_sentence(facts: InitFacts, extreme: Callable[..., tuple[float, int]]) -> str:
    """Name the block whose Jacobian has the largest (or least) gain.

    Args:
        facts: what was measured.
        extreme: ``max`` or ``min``.
    """
    gains = [(unit.gain, depth) for depth, unit in enumerate(facts.passed.units, 1) if unit.gain is not None]
    if not gains or facts.growth.gain is None:
        return ""
    gain, depth = extreme(gains)
    return (
        f" A {facts.unit} multiplies a gradient of random direction by {number(facts.growth.gain)} on average, the one "
        f"at depth {depth} ({facts.passed.units[depth - 1].name}) by {number(gain)}."
    )
