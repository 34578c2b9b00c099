"""The doctor: watches a training run, names the cause of an instability, applies remedies and tries them."""

from importlib import import_module
from typing import Any

# Loaded on first use: `poise explain` needs no tap, `poise run` no trial.
_PARTS = {
    "CAUSES": "causes",
    "Cause": "causes",
    "Script": "launcher",
    "launch": "launcher",
    "diagnose": "diagnose",
    "explain": "explain",
    "list_causes": "explain",
    "REMEDIES": "remedies",
    "Remedy": "remedies",
    "parse_remedy": "remedies",
    "Session": "session",
    "Settings": "session",
    "run_report": "run_report",
    "trial": "trial",
    "TrialResult": "trial",
    "trial_report": "trial_report",
    "watch": "watch",
}

__all__ = list(_PARTS)


def __getattr__(name: str) -> Any:
    if name not in _PARTS:
        raise AttributeError(f"module 'poise.doctor' has no attribute {name!r}")
    # A function and its file may share a name: fetch the attribute once, so that the name means the function.
    value = getattr(import_module(f"poise.doctor.{_PARTS[name]}"), name)
    globals()[name] = value
    return value
