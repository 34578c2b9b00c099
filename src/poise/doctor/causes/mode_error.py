"""Training and evaluation mode are mixed up.

## What it is
Training steps are taken while batch norm or dropout are in evaluation mode, or the model is evaluated while they are
in training mode.

## Why it hurts
In evaluation mode batch norm normalises with old statistics that no longer follow the weights (activations drift,
training may diverge), and dropout does nothing. In training mode an evaluation is noisy, depends on its batch, and
leaks into batch norm's statistics.

## How it is detected
Facts: `eval_mode`, the fraction of batch norm and dropout modules in evaluation mode during a forward pass that is
trained on, is 1 in two consecutive samples (error); a smaller fraction is *info*, as batch norm is often
frozen on purpose. Dropout that is off in three steps in a row, called by a module in evaluation mode, is an error,
too. A warning: a loss is computed without gradients while such modules are in training mode; or the model is called so
without a loss, at most after every fifth step, with batches that are neither repeated nor those of training.

## What cures it
```python
model.eval()
validate(model)  # bad: never set back
model.eval()
validate(model)
model.train()  # good
```

## References
- Ioffe and Szegedy, *Batch normalization: accelerating deep network training by reducing internal covariate shift*,
  ICML 2015, arXiv:1502.03167
"""

from __future__ import annotations

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import EXACT, first_run, listing, number
from poise.report.finding import Evidence, Finding
from poise.store import Record


def find(record: Record) -> list[Finding]:
    """Find training in evaluation mode and evaluation in training mode."""
    training = _training_in_eval(record) or _training_without_dropout(record)
    return training + _evaluation_in_train(record)


def _training_in_eval(record: Record) -> list[Finding]:
    fraction = record["eval_mode"]
    values = np.asarray(fraction.values)
    whole, part = first_run(values > 0.999, 2), first_run((values > 0) & (values <= 0.999), 2)
    # One finding each, so that a finding about a part stays valid when the whole follows later.
    return [_finding(record, index, error) for index, error in ((whole, True), (part, False)) if index is not None]


def _training_without_dropout(record: Record) -> list[Finding]:
    events = record.events("dropout_off_in_training")
    if not events:
        return []
    module, step = str(events[0].payload.get("module")), events[0].step
    return [
        CAUSE.finding(
            "error",
            EXACT,
            f"Training runs with {module} in evaluation mode and its dropout off: model.train() is missing.",
            where=[module],
            onset=step,
            detected=step,
            evidence=[Evidence("eval_mode", 1.0, None, 0.0, step)],
        )
    ]


def _finding(record: Record, index: int, error: bool) -> Finding:
    fraction = record["eval_mode"]
    value, onset, detected = float(fraction.values[index]), int(fraction.steps[index - 1]), int(fraction.steps[index])
    how_many = "all" if error else f"{number(100 * value)} % of"
    return CAUSE.finding(
        "error" if error else "info",
        EXACT,
        f"Since step {onset} training runs with {how_many} batch norm and dropout modules in evaluation mode"
        + (": model.train() is missing." if error else "."),
        onset=onset,
        detected=detected,
        evidence=[Evidence("eval_mode", value, None, 0.0, detected)],
    )


def _evaluation_in_train(record: Record) -> list[Finding]:
    events = record.events("eval_in_train_mode")
    if not events:
        return []
    modules = tuple(events[0].payload.get("modules") or ())
    return [
        CAUSE.finding(
            "warning",
            EXACT,
            f"The model was evaluated at step {events[0].step} with {listing(modules) or 'modules'} in training mode: "
            "model.eval() is missing.",
            where=modules,
            onset=events[0].step,
            detected=events[0].step,
        )
    ]


CAUSE = Cause(
    id="mode_error",
    title="Training and evaluation mode are mixed up",
    find=find,
    exact=True,
    doc=__doc__,
    family="contract",
    leads_to=("exploding_gradients",),
)
