"""poise finds out why something that learns is unstable, fixes it, and proves that the fix works."""

from importlib import import_module
from typing import Any

__version__: str  # found on first use, among all installed packages

# `poise.watch` and the rooms load on first use, so that `poise --help` and the launcher start fast.
_FRONT_DOORS = {"watch": "poise.doctor", "Report": "poise.report"}
_ROOMS = (
    "causal",
    "continual",
    "control",
    "curvature",
    "data",
    "doctor",
    "dynamics",
    "evidence",
    "loops",
    "losses",
    "nn",
    "optim",
    "preflight",
    "recsys",
    "report",
    "rules",
    "sensitivity",
    "shift",
    "store",
    "studies",
)

__all__ = ["Report", "__version__", *_ROOMS, "watch"]


def __getattr__(name: str) -> Any:
    if name in _FRONT_DOORS:
        return getattr(import_module(_FRONT_DOORS[name]), name)
    if name in _ROOMS:
        return import_module(f"poise.{name}")
    if name == "__version__":
        from importlib.metadata import version

        return version("poise")
    raise AttributeError(f"module 'poise' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
