"""The verdicts of a comparison, and the one rule behind them."""

from __future__ import annotations

from typing import Literal, get_args

Verdict = Literal["proved", "helps, not proved", "no effect", "hurts"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

PROOF = 0.975
"""Posterior probability from which an effect counts as proved: its central 95 % interval then excludes none."""

HINT = 0.8
"""Posterior probability from which an effect is reported: odds of four to one."""


def verdict_of(p_helps: float, p_hurts: float, second_interval_agrees: bool = True) -> Verdict:
    """Return the verdict on a treatment.

    The rule, for every comparison of this room:

    ====================  ==================================================================================
    *proved*              P(helps) >= 0.975, and the second interval, where there is one, excludes no effect *helps, not
    proved*   P(helps) >= 0.8 *hurts*               P(hurts) >= 0.8: harm needs no proof *no effect*
    otherwise: no effect was seen, which does not prove that there is none
    ====================  ==================================================================================

    "Helps" means better by more than the smallest effect that matters to the caller, "hurts" worse by more than it.

    Args:
        p_helps: posterior probability that the treatment helps, in [0, 1].
        p_hurts: posterior probability that it hurts, in [0, 1].
        second_interval_agrees: whether an interval that rests on other assumptions agrees.

    Raises:
        ValueError: if they are not probabilities or sum to more than one.
    """
    if not (0.0 <= p_helps <= 1.0 and 0.0 <= p_hurts <= 1.0 and p_helps + p_hurts <= 1.0 + 1e-9):
        raise ValueError(f"p_helps and p_hurts must be probabilities of exclusive events, got {p_helps} and {p_hurts}")
    if p_helps >= PROOF and second_interval_agrees:
        return "proved"
    if p_helps >= HINT:
        return "helps, not proved"
    return "hurts" if p_hurts >= HINT else "no effect"
