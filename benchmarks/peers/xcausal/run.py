"""The median of an ensemble of xcausal on given data: run.py IN.npz OUT.json."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
from econml.dml import NonParamDML
from econml.dr import DRLearner
from xcausal import CausalEnsemble

sys.path.insert(0, str(Path(__file__).parents[1]))
from learners import classifier, main, regressor


def ensemble(x: np.ndarray, y: np.ndarray, t: np.ndarray, seed: int) -> np.ndarray:
    methods = [
        DRLearner(
            model_propensity=classifier(seed), model_regression=regressor(seed), model_final=regressor(seed), cv=5,
            random_state=seed,
        ),
        NonParamDML(
            model_y=regressor(seed), model_t=classifier(seed), model_final=regressor(seed), discrete_treatment=True,
            cv=5, random_state=seed,
        ),
    ]  # fmt: skip
    found = CausalEnsemble(methods, "median").fit(x, t, y, random_state=seed).cate(x)
    return np.asarray(found.cate)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main({"xcausal median of both": ensemble})
