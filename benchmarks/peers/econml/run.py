"""EconML's doubly robust learner and non-parametric R-learner on given data: run.py IN.npz OUT.json."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
from econml.dml import NonParamDML
from econml.dr import DRLearner

sys.path.insert(0, str(Path(__file__).parents[1]))
from learners import classifier, main, regressor


def doubly_robust(x: np.ndarray, y: np.ndarray, t: np.ndarray, seed: int) -> np.ndarray:
    learner = DRLearner(
        model_propensity=classifier(seed), model_regression=regressor(seed), model_final=regressor(seed), cv=5,
        random_state=seed,
    )  # fmt: skip
    return learner.fit(y, t, X=x).effect(x)


def residual(x: np.ndarray, y: np.ndarray, t: np.ndarray, seed: int) -> np.ndarray:
    learner = NonParamDML(
        model_y=regressor(seed), model_t=classifier(seed), model_final=regressor(seed), discrete_treatment=True, cv=5,
        random_state=seed,
    )  # fmt: skip
    return learner.fit(y, t, X=x).effect(x)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main({"econml DRLearner": doubly_robust, "econml NonParamDML": residual})
