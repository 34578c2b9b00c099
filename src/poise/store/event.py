"""An event: something that happened once, at one step of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened at one step.

    Args:
        step: optimizer step at which it happened, from 0.
        kind: what happened, for example ``"optimizer"`` or ``"nonfinite_forward"``.
        payload: what is known about it; plain JSON types once it has been through a run file.
    """

    step: int
    kind: str
    payload: dict[str, Any] = field(default_factory=dict)
