"""The part of the tap that probes use: where numbers go, and what is known of the running step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from poise.doctor.recorder import Recorder
from poise.doctor.tap.discovery import Names
from poise.doctor.tap.interval import Interval
from poise.doctor.tap.timeline import Timeline


class Sink:
    """Takes the numbers and events of probes and hook groups.

    Args:
        recorder: where they go; ``None`` for a process that only applies remedies (ranks above 0).

    Attributes:
        names: of the models' parameters and modules.
        interval: what has happened since the last optimizer step.
        run_step: step of the optimizer that steps most, for events that belong to no optimizer.
        optimized: ids of all parameters that an optimizer holds.
        loaded: ids of all parameters that ``load_state_dict`` of a module has filled.
        acting: whether an environment moves between updates (:mod:`poise.doctor.tap.environments`).
        policy: whether a policy gradient was seen.
        copied: ids of all parameters of modules that are copies of a trained one (:mod:`poise.doctor.tap.copies`).
    """

    def __init__(self, recorder: Recorder | None) -> None:
        self.recorder = recorder
        self.names = Names()
        self.interval = Interval()
        self.run_step = 0
        self.optimized: set[int] = set()
        self.loaded: set[int] = set()
        self.copied: set[int] = set()
        self.acting = self.policy = False

    def observe(self, signal: str, value: float | Tensor, module: nn.Module | None = None, site: str = "") -> None:
        """Keep a number for the optimizer step that comes next; ``site`` distinguishes calls within one module."""
        self.interval.observations.append((signal, module, site, value))

    def emit(
        self, timeline: Timeline, signal: str, layers: Sequence[str] | None, values: Tensor | Sequence[Any]
    ) -> None:
        """Record numbers of the current step: one per layer, or one in all where ``layers`` is ``None``."""
        assert self.recorder is not None
        prefix = timeline.prefix + signal
        names = (prefix,) if layers is None else tuple(f"{prefix}[{layer}]" for layer in layers)
        if names:
            self.recorder.add(timeline.step, names, values)

    def event(self, step: int, kind: str, payload: dict[str, Any]) -> None:
        """Record something that happened, where anything is recorded."""
        if self.recorder is not None:
            self.recorder.event(step, kind, payload)

    def is_first(self, what: str, module: nn.Module | None, site: str = "") -> bool:
        """Return True the first time ``what`` occurs in ``module`` since the last optimizer step."""
        key = (what + site, id(module))
        if key in self.interval.seen:
            return False
        self.interval.seen.add(key)
        return True

    def flush_observations(self, timeline: Timeline) -> None:
        """Record what was observed since the last step as numbers of the current one."""
        by_signal: dict[str, tuple[list[str], list[Any]]] = {}
        for signal, module, site, value in self.interval.observations:
            if module is None:
                self.emit(timeline, signal, None, [value])
                continue
            name = self.names.modules.get(id(module))
            if name is not None:
                layers, values = by_signal.setdefault(signal, ([], []))
                layers.append(f"{name}.{site}" if site else name)
                values.append(value)
        for signal, (layers, values) in by_signal.items():
            self.emit(timeline, signal, layers, values)
