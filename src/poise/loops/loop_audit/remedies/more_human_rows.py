"""Add more human-labelled rows in every round.

## What it does
A larger part of the rows that each round adds is labelled by people.

## When it helps
Against a bias that the loop amplifies (`bias_amplification`), a class that gets lost (`lost_class`), and a drift
without a bound (`no_human_rows`): the long-run bias is at most (m + k) / m times the calibration error.

## What it costs
The labels. `poise.loops.human_rows_needed` says how many.

## Making it permanent
Reserve a budget of labels per round, drawn at random from what the model labels.

## References
- Taori and Hashimoto, *Data feedback loops: model-driven amplification of dataset biases*, ICML 2023, arXiv:2209.03942
"""

from __future__ import annotations

from poise.rules.documented_remedy import DocumentedRemedy

REMEDY = DocumentedRemedy(
    name="more_human_rows",
    title="Add more human-labelled rows in every round",
    doc=__doc__,
    kind="code",
    code=(
        "from poise.loops import human_rows_needed\n"
        "\n"
        "print(human_rows_needed(k=450, tolerance=0.1, delta=0.05))  # rows to label by hand in every round\n"
    ),
)
