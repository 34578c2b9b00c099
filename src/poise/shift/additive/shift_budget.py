"""How much a shift of each block of inputs costs a model, before labels arrive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import QuantileTransformer, SplineTransformer

from poise.evidence.domain_weights import domain_weights
from poise.report import Report, Table, Text
from poise.shift.additive.additive_regressor import INTERCEPT, AdditiveRegressor
from poise.shift.additive.block_variance import feature_variance
from poise.shift.additive.blocks import Blocks, block_matrices, checked_blocks
from poise.tools.number import number

INFLATION_THAT_MATTERS = 1.25
LARGE_RATIO = 3.0
_DOMAIN_ROWS = 20_000

Drift = Literal["no drift", "benign drift", "harmful drift"]


@dataclass(frozen=True, slots=True)
class BlockBudget:
    """What a shift of one block costs.

    Args:
        block: its name.
        degrees_of_freedom: how hard the block was to learn.
        density_ratio: mean squared density ratio of test and training rows in this block alone; 1 is no shift.
        train: variance that the block contributes alone on training rows.
        test: the same on test rows.
    """

    block: str
    degrees_of_freedom: float
    density_ratio: float
    train: float
    test: float

    @property
    def inflation(self) -> float:
        """Test by training."""
        return self.test / self.train if self.train > 0 else float("nan")


@dataclass(frozen=True, slots=True, eq=False)
class ShiftBudget:
    """The predicted excess risk under a shift, and the blocks that cause it.

    Args:
        per_block: one for each block.
        train: variance of the model's predictions at its training rows.
        test: the same at the test rows.
        rows: variance at each test row.
        noise_var: variance of the noise of the targets.
    """

    per_block: tuple[BlockBudget, ...]
    train: float
    test: float
    rows: np.ndarray
    noise_var: float

    @property
    def inflation(self) -> float:
        """By what factor the excess risk grows."""
        return self.test / self.train

    @property
    def verdict(self) -> Drift:
        """*harmful drift* if the excess risk grows by a quarter; else *benign* if a block moved much, or *no drift*."""
        if self.inflation >= INFLATION_THAT_MATTERS:
            return "harmful drift"
        return "benign drift" if any(b.density_ratio > LARGE_RATIO for b in self.per_block) else "no drift"

    def rank_rows(self) -> Int64[np.ndarray, " rows"]:
        """Return the test rows for which labels would help most, the most uncertain first."""
        return np.argsort(-self.rows, kind="stable")

    def report(self) -> Report:
        """Return a report."""
        columns = ["Block", "Degrees of freedom", "Density ratio", "Variance, training", "Variance, test", "Inflation"]
        rows = [[b.block, b.degrees_of_freedom, b.density_ratio, b.train, b.test, b.inflation] for b in self.per_block]
        caption = (
            "Density ratio: mean square over the training rows, 1 without a shift of this block. Variance: of what the "
            "block contributes to predictions; what blocks contribute together is in the total only."
        )
        return Report(
            "What does the shift of the inputs cost?",
            f"The excess risk is {number(self.inflation, 3)} times that of training rows: {self.verdict}.",
            blocks=[
                Table("Blocks", columns, rows, caption),
                Text(
                    f"- Excess risk {number(self.train)} on training rows, {number(self.test)} on test rows; noise "
                    f"{number(self.noise_var)}.\n- **Not checked:** the bias of the model, and whether the relation of "
                    "targets and inputs changed. Both need labels."
                ),
            ],
            verdict=self.verdict,
        )


def shift_budget(
    model: AdditiveRegressor | None,
    X_train: Any,
    X_test: Any,
    blocks: Blocks | None = None,
    *,
    alpha: float = 0.0,
    noise_var: float | None = None,
    seed: int = 0,
) -> ShiftBudget:
    """Return how much the excess risk of a model grows from training to test inputs, and which block it comes from.

    No labels are needed: the variance of a (kernel) ridge estimator is known exactly.

    Args:
        model: fitted additive model; None for linear regression on the columns as they are.
        X_train: training rows.
        X_test: rows under shift, without labels.
        blocks: columns of each block, without a model.
        alpha: ridge penalty, without a model.
        noise_var: variance of the noise; as the model estimated it by default, and 1 without a model.
        seed: of the classifier that measures the shift of each block.

    Raises:
        ValueError: if blocks are missing or overlap, a column is missing, a value is not finite, or ``noise_var`` is
            not positive.

    References:
        M. Simchowitz, A. Ajay et al. (2023), arXiv:2302.13934.
    """
    if model is not None:
        noise = model.noise_var_ if noise_var is None else noise_var
        used, freedom = model.blocks_, dict(model.degrees_of_freedom_)
        train, test = model.block_variance(X_train, noise), model.block_variance(X_test, noise)
    else:
        noise = 1.0 if noise_var is None else noise_var
        if blocks is None:
            raise ValueError("blocks must be given without a model")
        used = checked_blocks(blocks, X_train)
        phi, new = block_matrices(X_train, used, "X_train"), block_matrices(X_test, used, "X_test")
        train, test = feature_variance(phi, phi, alpha, noise), feature_variance(phi, new, alpha, noise)
        freedom = _degrees_of_freedom(phi, alpha)
    ratios = _density_ratios(X_train, X_test, used, seed)
    names: Sequence[str] = [name for name in train.names if name != INTERCEPT]
    per_block = tuple(BlockBudget(name, freedom[name], ratios[name], train.of(name), test.of(name)) for name in names)
    return ShiftBudget(per_block, train.total, test.total, test.totals, noise)


def _degrees_of_freedom(phi: dict[str, np.ndarray], alpha: float) -> dict[str, float]:
    """Return the trace of each block of ``A^-1 Phi' Phi``."""
    stacked = np.concatenate(list(phi.values()), 1)
    gram = stacked.T @ stacked
    diagonal = np.diag(np.linalg.lstsq(gram + alpha * np.eye(len(gram)), gram, rcond=None)[0])
    edges = np.cumsum([0, *(matrix.shape[1] for matrix in phi.values())])
    return {name: float(diagonal[edges[i] : edges[i + 1]].sum()) for i, name in enumerate(phi)}


def _density_ratios(X_train: Any, X_test: Any, blocks: Blocks, seed: int) -> dict[str, float]:
    """Return the mean squared density ratio of each block: rows by the effective sample size of its weights."""
    random = np.random.default_rng(seed)
    train, test = block_matrices(X_train, blocks, "X_train"), block_matrices(X_test, blocks, "X_test")
    out = {}
    for name in blocks:
        source, target = _some(train[name], random), _some(test[name], random)
        # Smooth in each column: trees would fit the noise of a few hundred training rows.
        classifier = make_pipeline(
            QuantileTransformer(n_quantiles=min(100, len(source) // 2), output_distribution="uniform"),
            SplineTransformer(n_knots=5),
            LogisticRegression(max_iter=500),
        )
        found = domain_weights(source, target, classifier=classifier, seed=seed)
        out[name] = found.overlap.rows / found.overlap.effective_sample_size
    return out


def _some(rows: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return rows if len(rows) <= _DOMAIN_ROWS else rows[random.choice(len(rows), _DOMAIN_ROWS, replace=False)]
