"""The model predicts well and its derivatives are wrong.

## What it is
The learned model's predictions are close to the plant, and its derivatives with respect to the state are not.

## Why it hurts
Controllers are computed from derivatives. A fit that is good in value can have ripples whose slopes are large, and
the gains follow the ripples.

## How it is detected
Over states in the box with the controller's inputs: the coefficient of determination of the predictions is above
0.99, and the median relative error of the Jacobian (in half widths of the box) above 0.2.

## What cures it
Estimate derivatives from perturbed runs (local linear models), learn a factorisation of the error along with the model,
or penalise the error of derivatives.

```python
model = poise.control.SDCModel(joint=True).fit(X, U, dX)
```

## References
- Pfrommer et al., *The power of learned locally linear models for nonlinear policy optimization*, ICML 2023,
  arXiv:2305.09619
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule

if TYPE_CHECKING:
    from poise.control.closed_loop_audit.facts import ClosedLoopFacts


_FITS, _WRONG = 0.99, 0.2


def find(facts: ClosedLoopFacts) -> list[Finding]:
    """Find a good fit with wrong derivatives."""
    model = facts.model
    if model is None or model.r2 <= _FITS or model.derivative_error <= _WRONG:
        return []
    text = (
        f"The model explains {100 * model.r2:.4g} % of the variance, but its derivatives are wrong by "
        f"{100 * model.derivative_error:.3g} % of their size."
    )
    return [
        RULE.finding(
            "warning",
            0.9,
            text,
            where=("model",),
            evidence=(Evidence("derivative error", model.derivative_error, _WRONG),),
        )
    ]


RULE: Rule[ClosedLoopFacts] = Rule(
    id="derivative_error",
    title="The model predicts well and its derivatives are wrong",
    find=find,
    doc=__doc__,
    family="model",
)
