"""Fine-tune so that the order of the last lists is kept.

## What it does
The lists of the trained model are recorded at every interaction. The model is then trained on for some epochs, each on
a freshly perturbed copy of the log, with a loss that keeps the recorded order beside the loss of the next item.

## When it helps
Against lists that change with one interaction (`interaction_sensitivity`) or with the seed (`seed_sensitivity`).

## What it costs
Some epochs more, about twice as long each, and a table of 2 K item numbers for each interaction. Accuracy is to be
measured again.

## Making it permanent
Run it after each training, with the references of the last model that was served.

## References
- Oh et al., *FINEST: stabilizing recommendations by rank-preserving fine-tuning*, TKDD 2024, arXiv:2402.03481
"""

from __future__ import annotations

from poise.rules.documented_remedy import DocumentedRemedy

REMEDY = DocumentedRemedy(
    name="rank_preserving_fine_tuning",
    title="Fine-tune so that the order of the last lists is kept",
    doc=__doc__,
    kind="code",
    code=(
        "from poise.recsys import EventLog, Finest, ReferenceRanks\n"
        "\n"
        "log = EventLog.from_frame(events)\n"
        "references = ReferenceRanks.from_model(model, log)  # of the model that is served\n"
        "Finest(references).fit(model, log)\n"
    ),
)
