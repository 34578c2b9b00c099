"""The check before the run: what will break, and at which learning rate and size."""

from poise.preflight.forecast_signal import SignalForecast, forecast_signal
from poise.preflight.lr_curve import LRCurve
from poise.preflight.lr_report import lr_figure, lr_report
from poise.preflight.lr_sensitivity import LRSensitivity, lr_sensitivity
from poise.preflight.max_trainable_lr import MaxTrainableLR, max_trainable_lr
from poise.preflight.sweep import SweepPoint, SweepResult, sweep

__all__ = [
    "LRCurve",
    "LRSensitivity",
    "MaxTrainableLR",
    "SignalForecast",
    "SweepPoint",
    "SweepResult",
    "forecast_signal",
    "lr_figure",
    "lr_report",
    "lr_sensitivity",
    "max_trainable_lr",
    "sweep",
]
