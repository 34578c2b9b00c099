"""Limit hidden layers to a change of low rank.

## What it does
Hidden linear layers are frozen, and a trainable product of two thin matrices is added to each; after the update it is
added to the weights.

## When it helps
Where the layers below the head move too far.

## What it costs
New data may be learned less well in small networks. Biases and normalisations do not move.

## Making it permanent
Inject before the optimizer is made, merge after the update.

## References
- Harun and Kanan, *Overcoming the stability gap in continual learning*, TMLR 2024, arXiv:2306.01904
- Hu et al., *LoRA: low-rank adaptation of large language models*, ICLR 2022, arXiv:2106.09685
"""

from __future__ import annotations

from poise.rules.documented_remedy import DocumentedRemedy

REMEDY = DocumentedRemedy(
    name="low_rank_update",
    title="Limit hidden layers to a change of low rank",
    doc=__doc__,
    kind="code",
    code=(
        "from poise.continual import inject_lora, merge_lora_\n"
        "\n"
        "inject_lora(model, rank=16)\n"
        "optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr)\n"
        "# ... the update ...\n"
        "merge_lora_(model)\n"
    ),
)
