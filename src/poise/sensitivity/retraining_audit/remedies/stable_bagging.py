"""Average the model over bags of rows.

## What it does
Many clones of the model are trained on random halves of the rows, and their outputs are averaged. The change of the
average when any one row is left out is bounded, whatever the data and the model.

## When it helps
Against decisions that flip with the seed (`seed_churn`), with the order of the rows (`row_order_churn`) or without a
few rows (`data_churn`), and against rows that carry most of the change (`influential_rows`).

## What it costs
As many trainings, on half of the rows each, and as many predictions as there are bags. `poise.sensitivity.bags_needed`
says how many a guarantee takes.

## Making it permanent
Use it in place of the model: it is a scikit-learn estimator.

## References
- Soloff, Barber and Willett, *Bagging provides assumption-free stability*, JMLR 2024, arXiv:2301.12600
"""

from __future__ import annotations

from poise.rules.documented_remedy import DocumentedRemedy

REMEDY = DocumentedRemedy(
    name="stable_bagging",
    title="Average the model over bags of rows",
    doc=__doc__,
    kind="code",
    code=(
        "from poise.sensitivity import StableBaggingClassifier\n"
        "\n"
        "model = StableBaggingClassifier(model, n_estimators=200, random_state=0).fit(X, y)\n"
        "print(model.guarantee(delta=0.1))  # what leaving out a row can change, for nine in ten rows\n"
    ),
)
