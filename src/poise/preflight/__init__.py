"""The check before the run: what will break, and at which learning rate and size."""

from typing import TYPE_CHECKING

from poise.tools.lazy_front import lazy_front

if TYPE_CHECKING:
    from poise.preflight.curvature_limit.stable_lr import StableLR, stable_lr
    from poise.preflight.init_audit import audit_init
    from poise.preflight.perturbation_audit import perturbation_grid
    from poise.preflight.range_test.lr_range_result import LRRangeTest
    from poise.preflight.range_test.lr_range_test import lr_range_test
    from poise.preflight.range_test.lr_suggestion import LRRangeCurve, LRSuggestion, NoSuggestion
    from poise.preflight.signal_propagation.hidden_state_gain import HiddenStateGain, hidden_state_gain
    from poise.preflight.sweeps.divergence import DivergedRunError, LossWatch, has_diverged
    from poise.preflight.sweeps.find_max_trainable_lr import compare_max_trainable_lr, find_max_trainable_lr
    from poise.preflight.sweeps.forecast_signal import SignalForecast, forecast_signal
    from poise.preflight.sweeps.lr_crossing import LRCrossing, lr_crossing
    from poise.preflight.sweeps.lr_curve import LRCurve
    from poise.preflight.sweeps.lr_report import lr_figure, lr_report
    from poise.preflight.sweeps.lr_sensitivity import LRSensitivity, lr_sensitivity
    from poise.preflight.sweeps.max_trainable_lr import MaxTrainableLR, max_trainable_lr
    from poise.preflight.sweeps.sweep import SweepResult, sweep
    from poise.preflight.sweeps.sweep_point import SweepPoint

__all__ = [
    "DivergedRunError",
    "HiddenStateGain",
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
    "compare_max_trainable_lr",
    "find_max_trainable_lr",
    "forecast_signal",
    "has_diverged",
    "hidden_state_gain",
    "lr_crossing",
    "lr_figure",
    "lr_range_test",
    "lr_report",
    "lr_sensitivity",
    "max_trainable_lr",
    "perturbation_grid",
    "stable_lr",
    "sweep",
]

lazy_front(__name__)
