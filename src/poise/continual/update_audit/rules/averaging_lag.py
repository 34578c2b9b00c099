"""The average that is served has not yet learned the new data.

## What it is
An exponential moving average of the weights is served, and its memory is too long for the update: over the second half
of the update its score on new data is well below that of the trained weights.

## Why it hurts
The average hides the drop on old data, but users of the new classes get the model of before the update.

## How it is detected
The served average and the trained weights are both evaluated on new data. The finding is made if the average is more
than 0.1 behind over the second half of the update.

## What cures it
A decay whose memory, 1 / (1 - decay) updates, is at most a third of the update; or more updates before it is served.

```python
EMA(model, decay=0.999)  # bad for an update of 300 steps
EMA(model, decay=0.99)  # good: remembers 100 steps
```

## References
- Soutif-Cormerais et al., *Improving online continual learning performance and stability with temporal ensembles*,
  CoLLAs 2023, arXiv:2306.16817
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule
from poise.tools.number import number

if TYPE_CHECKING:
    from poise.continual.update_audit.facts import UpdateFacts

_MOST = -0.1


def find(facts: UpdateFacts) -> list[Finding]:
    """Find an average that is behind the trained weights on new data."""
    if facts.lag is None or facts.lag >= _MOST:
        return []
    words = (
        f"Averaged weights of decay {number(facts.decay, 4)} are {number(-facts.lag, 3)} behind the trained ones on "
        "new data over the second half of the update."
    )
    evidence = [Evidence("score on new data, served minus trained", facts.lag, _MOST)]
    return [RULE.finding("warning", 0.9, words, evidence=evidence)]


RULE: Rule[UpdateFacts] = Rule(
    id="averaging_lag",
    title="The served average is behind on new data",
    find=find,
    doc=__doc__,
    remedies=("shorter_average", "serve_average"),
    family="served weights",
)
