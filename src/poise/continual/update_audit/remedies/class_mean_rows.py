"""Set the output rows of new classes from their samples.

## What it does
The output row of each new class is the mean direction of its features, centred on the features of old data and as long
as the old rows; its bias lets it win at most 2 % of the old samples.

## When it helps
Where random rows of new classes lower the old score at once, or their first loss is large.

## What it costs
One forward pass over samples of old and new data.

## Making it permanent
Call it once, after the head was widened and before the update.

## References
- Harun and Kanan, *Overcoming the stability gap in continual learning*, TMLR 2024, arXiv:2306.01904
"""

from __future__ import annotations

from poise.rules.documented_remedy import DocumentedRemedy

REMEDY = DocumentedRemedy(
    name="class_mean_rows",
    title="Set the output rows of new classes from their samples",
    doc=__doc__,
    kind="code",
    code=(
        "from poise.continual import class_mean_init_, find_head, head_inputs\n"
        "\n"
        "_, head = find_head(model)\n"
        "old_features, new_features = head_inputs(model, head, old_x), head_inputs(model, head, new_x)\n"
        "class_mean_init_(head, new_features, new_y, new_classes, old_features=old_features)\n"
    ),
)
