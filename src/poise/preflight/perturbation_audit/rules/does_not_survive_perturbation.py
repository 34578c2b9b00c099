"""Training fails with one setting changed.

## What it is
A training recipe that works fails if one setting is changed: a learning rate five times higher, initial weights ten
times smaller, no warm-up.

## Why it hurts
The recipe works by a small margin. Another model size, another batch size or a longer schedule moves the best settings
by as much, and then it fails without an obvious reason.

## How it is detected
The model is trained under each condition and seed. A run fails that diverges, or whose training loss falls by less than
half of what it falls under the unchanged recipe. The confidence is the mean of the posterior of the fraction of seeds
that fail, under a uniform prior. It is an error if the unchanged recipe itself fails: then the other conditions cannot
be judged.

## What cures it
What widens the range of settings that work: normalised queries and keys, weights split into direction and scale,
factors on residual branches, a longer warm-up. Run the grid again with it.

```python
perturbation_grid(make_model, make_loader)  # fails under lr*5
perturbation_grid(lambda: with_qk_norm(make_model()), make_loader)  # does it still?
```

## References
- Wang et al., *Scale-distribution decoupling*, 2025, arXiv:2502.15499
- Wortsman et al., *Small-scale proxies for large-scale Transformer training instabilities*, ICLR 2024,
  arXiv:2309.14322
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule

if TYPE_CHECKING:
    from poise.preflight.perturbation_audit.facts import GridFacts


def find(facts: GridFacts) -> list[Finding]:
    """Find the conditions under which training fails on some seed."""
    base = facts.base.final
    found = []
    for outcome in facts.outcomes:
        if not outcome.failed.any():
            continue
        worst = outcome.final[outcome.failed]
        found.append(
            RULE.finding(
                "error" if outcome.condition == "base" else "warning",
                # Mean of the posterior of the fraction of seeds that fail, under a uniform prior.
                (int(outcome.failed.sum()) + 1) / (len(outcome.failed) + 2),
                f"Under {outcome.condition} training {outcome.words}.",
                evidence=(Evidence("final_loss", float(worst.mean()), baseline=float(base.mean())),),
            )
        )
    return found


RULE: Rule[GridFacts] = Rule(
    id="does_not_survive_perturbation",
    title="Training fails with one setting changed",
    find=find,
    doc=__doc__,
    family="learning rate",
)
