"""Parameters that nobody trains."""

from __future__ import annotations

from difflib import SequenceMatcher
from typing import TYPE_CHECKING

from poise.doctor.probes.probe import Probe

if TYPE_CHECKING:
    from poise.doctor.tap.sink import Sink
    from poise.doctor.tap.timeline import Timeline

_PATIENCE = 10  # steps after which a parameter without a gradient is believed to stay without


class OrphanProbe(Probe):
    """Event ``orphans``: parameters in no optimizer, without a gradient so far, or of no live module."""

    def __init__(self) -> None:
        self._seen: dict[str, set[int]] = {}
        self._told: set[str] = set()

    def before_step(self, sink: Sink, timeline: Timeline) -> None:
        """Note which parameters get a gradient, and tell once."""
        seen = self._seen.setdefault(timeline.prefix, set())
        seen.update(timeline.with_gradient)
        seen.update(i for i, p in enumerate(timeline.parameters) if p.grad is not None)
        if timeline.step < _PATIENCE or timeline.prefix in self._told:
            return
        self._told.add(timeline.prefix)
        named = sink.names.parameters
        trained = [i for i, p in enumerate(timeline.parameters) if p.requires_grad]
        lost = [i for i in trained if id(timeline.parameters[i]) not in named] if named else []
        idle = [i for i in trained if i not in seen and i not in lost]
        payload = {
            "timeline": timeline.prefix,
            "unoptimized": _unoptimized(sink),
            "no_gradient": [timeline.names[i] for i in idle],
            "replaced": _replaced(sink, timeline, lost),
        }
        if any(payload[k] for k in ("unoptimized", "no_gradient", "replaced")):
            sink.event(timeline.step, "orphans", payload)


def _replaced(sink: Sink, timeline: Timeline, lost: list[int]) -> list[str]:
    """Name tensors of no live module by what stands in their place in the model, and tell their shape."""
    named = sink.names.parameters
    held = [named.get(id(p), "") for p in timeline.parameters]
    live = [named[id(p)] for root in sink.names.roots for p in root.parameters()]
    places: dict[int, str] = {}
    for kind, i, i_end, j, j_end in SequenceMatcher(None, held, live, autojunk=False).get_opcodes():
        if kind == "replace" and i_end - i == j_end - j:
            places.update(zip(range(i, i_end), live[j:j_end], strict=True))
    names = [places.get(i, timeline.names[i]) for i in lost]
    return [f"{name} {tuple(timeline.parameters[i].shape)}" for name, i in zip(names, lost, strict=True)]


def _unoptimized(sink: Sink) -> list[str]:
    trainable = [p for root in sink.names.roots for p in root.parameters() if p.requires_grad]
    return [sink.names.parameters[id(p)] for p in trainable if id(p) not in sink.optimized | sink.copied]
