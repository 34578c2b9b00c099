"""The doctor: watch a training run, find the cause of an instability, apply remedies and test them in trials."""

from typing import TYPE_CHECKING

from poise.tools.lazy_front import lazy_front

if TYPE_CHECKING:
    from poise.doctor.causes import CAUSES, Cause
    from poise.doctor.diagnose import diagnose
    from poise.doctor.explain import explain, list_causes
    from poise.doctor.launcher import launch
    from poise.doctor.main_module import Script
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

lazy_front(__name__)
