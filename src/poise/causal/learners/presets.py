"""The two pseudo-outcome learners that have names of their own."""

from __future__ import annotations

from typing import Any

from poise.causal.learners.pseudo_outcome_learner import PseudoOutcomeLearner


class DRLearner(PseudoOutcomeLearner):
    """The doubly robust learner, with inverse-variance weights by default.

    ``PseudoOutcomeLearner(pseudo="dr")``; see there. ``weights=None`` is the learner as it is usually described.

    References:
        Kennedy (2023). Towards optimal doubly robust estimation of heterogeneous causal effects. arXiv:2004.14497.
    """

    def __init__(
        self,
        weights: str | None = "ivw",
        outcome: Any = None,
        propensity: Any = None,
        effect_model: Any = None,
        *,
        cv: int = 5,
        cf_order: int = 2,
        clip: float = 0.01,
        standardize_weights: bool = True,
        control: Any = None,
        random_state: Any = None,
        n_jobs: int | None = None,
    ) -> None:
        super().__init__(
            "dr", weights, outcome, propensity, effect_model, cv=cv, cf_order=cf_order, clip=clip,
            standardize_weights=standardize_weights, control=control, random_state=random_state, n_jobs=n_jobs,
        )  # fmt: skip


class RLearner(PseudoOutcomeLearner):
    """The R-learner: the U pseudo-outcome with the weights that keep it stable.

    ``PseudoOutcomeLearner(pseudo="u")``; see there. It minimises the sum of squares of
    outcome residual minus effect times treatment residual.

    References:
        Nie and Wager (2021). Quasi-oracle estimation of heterogeneous treatment effects. arXiv:1712.04912.
    """

    def __init__(
        self,
        outcome: Any = None,
        propensity: Any = None,
        effect_model: Any = None,
        *,
        cv: int = 5,
        cf_order: int = 2,
        clip: float = 0.01,
        standardize_weights: bool = True,
        control: Any = None,
        random_state: Any = None,
        n_jobs: int | None = None,
    ) -> None:
        super().__init__(
            "u", "ivw", outcome, propensity, effect_model, cv=cv, cf_order=cf_order, clip=clip,
            standardize_weights=standardize_weights, control=control, random_state=random_state, n_jobs=n_jobs,
        )  # fmt: skip
