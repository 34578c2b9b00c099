"""The check before the run: what will break, and at which learning rate and size."""

from poise.preflight.find_max_lr import compare_max_lr, find_max_lr
from poise.preflight.forecast_signal import SignalForecast, forecast_signal
from poise.preflight.hidden_state_gain import HiddenStateGain, hidden_state_gain
from poise.preflight.hopeless import HopelessRunError, LossWatch, is_hopeless
from poise.preflight.init_audit import audit_init
from poise.preflight.lr_crossing import LRCrossing, lr_crossing
from poise.preflight.lr_curve import LRCurve
from poise.preflight.lr_range_test import LRRangeTest, lr_range_test
from poise.preflight.lr_report import lr_figure, lr_report
from poise.preflight.lr_sensitivity import LRSensitivity, lr_sensitivity
from poise.preflight.lr_suggestion import LRRangeCurve, LRSuggestion, NoSuggestion, suggest_lr
from poise.preflight.max_trainable_lr import MaxTrainableLR, max_trainable_lr
from poise.preflight.perturbation_audit import perturbation_grid
from poise.preflight.stable_lr import StableLR, stable_lr
from poise.preflight.sweep import SweepResult, sweep
from poise.preflight.sweep_point import SweepPoint

__all__ = [
    "HiddenStateGain",
    "HopelessRunError",
    "LRCrossing",
    "LRCurve",
    "LRRangeCurve",
    "LRRangeTest",
    "LRSensitivity",
    "LRSuggestion",
    "LossWatch",
    "MaxTrainableLR",
    "NoSuggestion",
    "SignalForecast",
    "StableLR",
    "SweepPoint",
    "SweepResult",
    "audit_init",
    "compare_max_lr",
    "find_max_lr",
    "forecast_signal",
    "hidden_state_gain",
    "is_hopeless",
    "lr_crossing",
    "lr_figure",
    "lr_range_test",
    "lr_report",
    "lr_sensitivity",
    "max_trainable_lr",
    "perturbation_grid",
    "stable_lr",
    "suggest_lr",
    "sweep",
]
