"""A small change of gain, delay or period is too much.

## What it is
The linearised loop is stable, and would not be after a modest change of its gain, its phase, its delay or its sampling
period.

## Why it hurts
Real plants differ from their models by that much: worn actuators, other loads, a computer that is late.

## How it is detected
One of: a gain margin below 2 (or above 1/2 downwards), a phase margin below 30 degrees, a delay margin below one
period, a sampling period that cannot be doubled. Margins are those of the sampled loop, for each input with the others
closed. They are the usual minimum of textbooks.

## What cures it
Smaller gains or more damping; a shorter sampling period; a weight on the input's rate.

```python
K = poise.control.dlqr(Ad, Bd, Q, 10 * R)  # a larger weight on the input
```

## References
- Åström and Murray, *Feedback Systems*, 2nd edition, Princeton University Press 2021, section 10.3
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule
from poise.tools.number import number

if TYPE_CHECKING:
    from poise.control.closed_loop_audit.facts import ClosedLoopFacts


_GAIN, _PHASE, _PERIODS = 2.0, 30.0, 1.0


def find(facts: ClosedLoopFacts) -> list[Finding]:
    """Find margins below the usual minimum, and name the smallest."""
    small: list[tuple[float, str, Evidence]] = []
    for i, m in enumerate(facts.margins):
        for part, words, value, limit in (
            (m.gain / _GAIN, f"a gain {number(m.gain, 3)} times as large", m.gain, _GAIN),
            (
                1 / (_GAIN * m.gain_low) if m.gain_low else 9.0,
                f"a gain {number(m.gain_low, 3)} times as large",
                m.gain_low,
                0.5,
            ),
            (m.phase / _PHASE, f"a phase shift of {number(m.phase, 3)} degrees", m.phase, _PHASE),
            (m.delay / facts.dt, f"a delay of {number(m.delay / facts.dt, 3)} periods", m.delay / facts.dt, _PERIODS),
        ):
            if part < 1:
                small.append((part, f"{words} on input {i}", Evidence(f"margin[{i}]", value, limit)))
    if facts.period_factor is not None and facts.period_factor < _GAIN:
        words = f"a sampling period {number(facts.period_factor, 3)} times as long"
        small.append((facts.period_factor / _GAIN, words, Evidence("sampling period", facts.period_factor, _GAIN)))
    if not small:
        return []
    small.sort(key=lambda item: item[0])
    text = f"The loop stops being stable with {small[0][1]}."
    return [RULE.finding("warning", 0.9, text, where=("goal",), evidence=[item[2] for item in small])]


RULE: Rule[ClosedLoopFacts] = Rule(
    id="small_margin",
    title="A small change of gain, delay or period is too much",
    find=find,
    doc=__doc__,
    family="goal",
)
