"""A finding: one cause of instability that was found, with its evidence."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from poise.tools.json_numbers import json_number

Severity = Literal["info", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)


@dataclass(frozen=True, slots=True)
class Evidence:
    """One measured number that supports a finding.

    Args:
        signal: name of the signal, for example ``"attention_logit_max[blocks.1.attn]"``.
        value: the number that was measured.
        threshold: the number it was compared with; ``None`` where the rule is exact.
        baseline: what the same signal was in the healthy part of this run; ``None`` where there is none.
        step: optimizer step at which ``value`` was measured.
    """

    signal: str
    value: float
    threshold: float | None = None
    baseline: float | None = None
    step: int | None = None

    def __post_init__(self) -> None:
        # NumPy's scalars are accepted, but JSON holds only Python's.
        for name in _NUMBERS:
            _set_as(self, name, float)
        _set_as(self, "step", _whole)


@dataclass(frozen=True, slots=True)
class Finding:
    """A cause that was found in a run.

    Args:
        cause: identifier of the cause, for example ``"attention_logit_growth"``.
        severity: ``"info"``, ``"warning"`` or ``"error"``.
        probability: confidence of the rule, in [0, 1].
        summary: one plain sentence that names what happened, where and when.
        where: names of the layers, parameters or optimizers concerned, worst first.
        onset_step: step at which the cause began; ``None`` where it has no time (for example a bug in the script).
        detected_step: first step at which the record sufficed to find it.
        event_step: step of the spike, divergence or stall that followed; ``None`` if none did.
        evidence: the numbers.
        remedies: names of remedies, with their strength where it matters, the most promising first.

    Raises:
        TypeError: if ``where`` or ``remedies`` is one text instead of a tuple of texts.
        ValueError: if ``severity`` is unknown or ``probability`` is outside [0, 1].
    """

    cause: str
    severity: Severity
    probability: float
    summary: str
    where: tuple[str, ...] = ()
    onset_step: int | None = None
    detected_step: int | None = None
    event_step: int | None = None
    evidence: tuple[Evidence, ...] = ()
    remedies: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("where", "remedies"):
            if isinstance(getattr(self, name), str):
                raise TypeError(f"{name} must be a tuple of names, got the text {getattr(self, name)!r}")
        if self.severity not in SEVERITIES:
            raise ValueError(f"severity must be one of {SEVERITIES}, got {self.severity!r}")
        if not 0.0 <= self.probability <= 1.0 or math.isnan(self.probability):
            raise ValueError(f"probability must lie in [0, 1], got {self.probability!r}")
        _set_as(self, "probability", float)
        for name in ("onset_step", "detected_step", "event_step"):
            _set_as(self, name, _whole)
        for name in ("where", "evidence", "remedies"):
            _set_as(self, name, tuple)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; infinities and NaN of the evidence become strings."""
        out = asdict(self)
        out["where"], out["remedies"] = list(self.where), list(self.remedies)
        out["evidence"] = [
            {k: json_number(v) if isinstance(v, float) else v for k, v in asdict(e).items()} for e in self.evidence
        ]
        return out

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Finding:
        """Rebuild a finding from :meth:`to_dict`."""
        evidence = tuple(Evidence(**item) for item in data["evidence"])
        return cls(**{**data, "where": tuple(data["where"]), "remedies": tuple(data["remedies"]), "evidence": evidence})


def _set_as(record: Evidence | Finding, name: str, kind: Callable[[Any], Any]) -> None:
    value = getattr(record, name)
    if value is not None:
        object.__setattr__(record, name, kind(value))


def _whole(step: Any) -> int:
    if step != int(step):
        raise ValueError(f"a step must be a whole number, got {step!r}")
    return int(step)


_NUMBERS = ("value", "threshold", "baseline")
