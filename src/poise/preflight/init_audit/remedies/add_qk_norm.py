"""Put a norm before the product of queries and keys.

## What it does
`poise.nn.add_qk_norm` gives the queries and keys of every attention mean 0 and variance 1 before their product, with
learned gains. A logit then stays within the product of gains times the root of the head's size.

## When it helps
Against attention logits that are large from the start, or grow. (The live remedy `qk_norm` does the same in a run whose
script stays as it is, without gains.)

## What it costs
A pass over queries and keys. A model that was trained without it changes at once.

## Making it permanent
Call it once, after the model is made and before the optimizer is.

## References
- Wortsman et al., *Small-scale proxies for large-scale Transformer training instabilities*, ICLR 2024,
  arXiv:2309.14322
- Dehghani et al., *Scaling vision transformers to 22 billion parameters*, ICML 2023, arXiv:2302.05442
"""

from __future__ import annotations

from poise.rules.documented_remedy import DocumentedRemedy

REMEDY = DocumentedRemedy(
    name="add_qk_norm",
    title="Put a norm before the product of queries and keys",
    doc=__doc__,
    kind="surgery",
    code=(
        "from poise.nn import add_qk_norm\n"
        "\n"
        "print(add_qk_norm(model, example_input).report())  # logits are then at most gain**2 * sqrt(head size)\n"
    ),
)
