"""A softmax has rows in which everything is masked.

## What it is
A mask puts minus infinity at every entry of a row: a sequence that is all padding, a query that may see no key, an
empty set.

## Why it hurts
The row's exponentials are all 0, and 0 divided by 0 is NaN. One such row in one batch is enough: the NaN reaches the
loss, the gradients and then all weights.

## How it is detected
A fact: the first operation of the forward pass that made NaN is a softmax (or the attention of
`nn.MultiheadAttention`), and rows of what it was given, or of its mask, are minus infinity throughout.

## What cures it
```python
weights = scores.masked_fill(~mask, -math.inf).softmax(-1)  # bad where a row of mask has no True
some = mask.any(-1, keepdim=True)
weights = scores.masked_fill(~(mask | ~some), -math.inf).softmax(-1) * some  # good: such a row becomes zeros
```

## References
- PyTorch documentation, *torch.nn.functional.scaled_dot_product_attention*
- Vaswani et al., *Attention is all you need*, NeurIPS 2017, arXiv:1706.03762
"""

from __future__ import annotations

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.contract.first_event import at_line, first_event
from poise.doctor.causes.reading import EXACT
from poise.report.finding import Evidence, Finding
from poise.store import Record


def find(record: Record) -> list[Finding]:
    """Find the softmax that made the first NaN of rows without any entry."""
    event = first_event(record, "nonfinite_forward")
    if event is None or not event.payload.get("masked_rows"):
        return []
    rows, of = int(event.payload["masked_rows"]), int(event.payload["rows"])
    module = str(event.payload.get("module") or "")
    return [
        CAUSE.finding(
            "error",
            EXACT,
            f"In {rows} of {of} rows of the softmax in {module or 'the model'}{at_line(event)} everything is masked: "
            f"their result is NaN at step {event.step}. Leave something to see in each row, and set the rows' results "
            "to zero.",
            where=[module] if module else [],
            onset=event.step,
            detected=event.step,
            event=event.step,
            evidence=[Evidence("fully_masked_rows", float(rows), 0.0, 0.0, event.step)],
        )
    ]


CAUSE = Cause(
    id="fully_masked_softmax",
    title="A softmax has rows that are masked throughout",
    find=find,
    exact=True,
    doc=__doc__,
    family="contract",
    leads_to=("forward_nonfinite",),
)
