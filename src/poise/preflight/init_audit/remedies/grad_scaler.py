"""Scale the loss.

## What it does
Multiplies the loss by a large number before the backward pass and divides the gradients by it before the step; the
number follows what the format can hold.

## When it helps
Against gradients that are below the smallest number of float16 (`gradient_underflow`).

## What it costs
Occasionally a skipped step, when the number has become too large.

## Making it permanent
The lines shown take the place of `loss.backward()` and `optimizer.step()`. In bfloat16 none of this is needed.

## References
- Micikevicius et al., *Mixed precision training*, ICLR 2018, arXiv:1710.03740
"""

from __future__ import annotations

from poise.rules.documented_remedy import DocumentedRemedy

REMEDY = DocumentedRemedy(
    name="grad_scaler",
    title="Scale the loss",
    doc=__doc__,
    kind="code",
    code=(
        "scaler = torch.amp.GradScaler(device)  # or train in bfloat16, whose range is that of float32\n"
        "scaler.scale(loss).backward()\n"
        "scaler.step(optimizer)\n"
        "scaler.update()\n"
    ),
)
