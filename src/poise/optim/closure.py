"""Calling the closure of a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def evaluate(closure: Callable[[], Any] | None) -> Any:
    """Call a closure, if there is one, with gradients enabled, as optimizers do."""
    with torch.enable_grad():
        return None if closure is None else closure()
