"""The doctor: watches a training run, names the cause of an instability, applies remedies and tries them."""

from poise.doctor.causes import CAUSES, Cause
from poise.doctor.diagnose import diagnose
from poise.doctor.explain import explain, list_causes
from poise.doctor.launcher import Script, launch
from poise.doctor.remedies import REMEDIES, Remedy, parse_remedy
from poise.doctor.run_report import run_report
from poise.doctor.session import Session, Settings
from poise.doctor.trial.compare import TrialResult
from poise.doctor.trial.report import trial_report
from poise.doctor.trial.trial import trial
from poise.doctor.watch import watch

__all__ = [
    "CAUSES",
    "REMEDIES",
    "Cause",
    "Remedy",
    "Script",
    "Session",
    "Settings",
    "TrialResult",
    "diagnose",
    "explain",
    "launch",
    "list_causes",
    "parse_remedy",
    "run_report",
    "trial",
    "trial_report",
    "watch",
]
