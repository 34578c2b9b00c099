"""Draw labels from the model's probabilities.

## What it does
Each row that the model labels gets a class drawn from its predicted probabilities instead of the likeliest one.

## When it helps
Against a bias that the loop amplifies (`bias_amplification`): a model whose probabilities are calibrated then
reproduces the proportions that it was trained on.

## What it costs
Single labels are wrong more often, so a model that is trained on few rows may be less accurate.

## Making it permanent
Draw where rows are labelled, and keep the seed with the rows. Calibrate the probabilities on held-out human labels.

## References
- Taori and Hashimoto, *Data feedback loops: model-driven amplification of dataset biases*, ICML 2023, arXiv:2209.03942
"""

from __future__ import annotations

from poise.rules.documented_remedy import DocumentedRemedy

REMEDY = DocumentedRemedy(
    name="draw_labels",
    title="Draw labels from the model's probabilities",
    doc=__doc__,
    kind="code",
    code=(
        "rng = np.random.default_rng(seed)\n"
        "probability = model.predict_proba(X_new)\n"
        "labels = model.classes_[(np.log(probability) + rng.gumbel(size=probability.shape)).argmax(1)]\n"
    ),
)
