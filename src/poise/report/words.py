"""How numbers and names are written for a reader, the same on a page and in a terminal."""

from __future__ import annotations

from typing import Any, Literal

from poise.tools.number import number as number

Tone = Literal["good", "warning", "bad", "neutral"]

# The verdicts of the package, from the rooms `evidence` and `studies`.
_TONES: dict[str, Tone] = {
    "proved": "good",
    "reproduced": "good",
    "helps, not proved": "warning",
    "partly": "warning",
    "at risk": "warning",
    "at the edge": "warning",
    "below the edge, unstable": "warning",
    "below the edge": "good",
    "above the edge": "bad",
    "undecided": "warning",
    "cannot be told": "warning",
    "holds": "good",
    "benign": "good",
    "stable": "good",
    "normally stable": "good",
    "nothing found that would break": "good",
    "hurts": "bad",
    "dropped": "bad",
    "harmful": "bad",
    "refuted": "bad",
    "unstable": "bad",
    "no stable": "bad",
    "will fail": "bad",
}


def cell(value: Any) -> str:
    """Write one cell of a table; a missing value is a dash."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value) if isinstance(value, (int, float)) else str(value)


def is_number(value: Any) -> bool:
    """Whether a cell holds a number (a bool is a word, not a number)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def percent(probability: float) -> str:
    """Write a probability as a percentage that is never rounded to 0 % or 100 %."""
    if 0 < probability < 0.01:
        return "<1 %"
    if 0.99 < probability < 1:
        return ">99 %"
    return f"{100 * probability:.0f} %"


def name_of(identifier: str) -> str:
    """Return ``"attention_logit_growth"`` as ``"Attention logit growth"``."""
    text = identifier.replace("_", " ").replace("-", " ").strip()
    return text[:1].upper() + text[1:]


def tone_of(verdict: str) -> Tone:
    """Return the colour family of a verdict; unknown verdicts are neutral."""
    text = verdict.casefold()
    return next((tone for word, tone in _TONES.items() if text.startswith(word)), "neutral")
