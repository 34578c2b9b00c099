"""The trial of a remedy: plan, runs, comparison, report."""

from poise.doctor.trial.compare import Comparison, TrialResult, compare, final_loss, stronger
from poise.doctor.trial.plan import Arm, Plan, arm_name, make_plan
from poise.doctor.trial.report import trial_report
from poise.doctor.trial.runs import ArmResult, read_arm
from poise.doctor.trial.trial import carry_out, trial

__all__ = [
    "Arm",
    "ArmResult",
    "Comparison",
    "Plan",
    "TrialResult",
    "arm_name",
    "carry_out",
    "compare",
    "final_loss",
    "make_plan",
    "read_arm",
    "stronger",
    "trial",
    "trial_report",
]
