"""What changes when one training row, the seed or the row order changes: churn, bags, robust counterfactuals."""

from typing import TYPE_CHECKING

from poise.tools.lazy_front import lazy_front

if TYPE_CHECKING:
    from poise.sensitivity.bagging_guarantee import bags_needed, guaranteed_change, guaranteed_fraction
    from poise.sensitivity.churn import Churn, churn
    from poise.sensitivity.counterfactual_stability import counterfactual_stability, validity_guarantee
    from poise.sensitivity.counterfactuals import Counterfactuals, CounterfactualSearch
    from poise.sensitivity.feature_constraints import FeatureConstraints
    from poise.sensitivity.leave_one_out_stability import LeaveOneOutStability, leave_one_out_stability
    from poise.sensitivity.resampling import Bernoulli, Bootstrap, PoissonBootstrap, Subsample, stability_constant
    from poise.sensitivity.retraining_audit import audit_retraining
    from poise.sensitivity.retraining_audit.measure import NonDeterministicTraining
    from poise.sensitivity.retraining_validity import RetrainingValidity, retraining_validity
    from poise.sensitivity.stable_bagging import StableBaggingClassifier, StableBaggingRegressor, from_sklearn

__all__ = [
    "Bernoulli",
    "Bootstrap",
    "Churn",
    "CounterfactualSearch",
    "Counterfactuals",
    "FeatureConstraints",
    "LeaveOneOutStability",
    "NonDeterministicTraining",
    "PoissonBootstrap",
    "RetrainingValidity",
    "StableBaggingClassifier",
    "StableBaggingRegressor",
    "Subsample",
    "audit_retraining",
    "bags_needed",
    "churn",
    "counterfactual_stability",
    "from_sklearn",
    "guaranteed_change",
    "guaranteed_fraction",
    "leave_one_out_stability",
    "retraining_validity",
    "stability_constant",
    "validity_guarantee",
]

lazy_front(__name__)
