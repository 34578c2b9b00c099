"""Whether parameters that a script freezes, or releases, really are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from poise.doctor.probes.orphans import live_optimizers
from poise.doctor.probes.probe import Probe
from poise.doctor.shards import local_shard
from poise.doctor.tap.loss_call import is_examined
from poise.doctor.tap.plain import is_capturing

if TYPE_CHECKING:
    from poise.doctor.tap.sink import Sink
    from poise.doctor.tap.timeline import Timeline

_OF_MODULES = ("requires_grad",)  # a module has the method requires_grad_(), and no such attribute
_OF_ANYTHING = ("require_grad", "require_grads", "required_grad", "requires_grads", "requires_gradient", "requiresgrad")
_COMPARED = 3  # frozen tensors that are compared before and after a step
_SHOWN = 20


class FreezingProbe(Probe):
    """Events ``requires_grad_in_vain`` and ``frozen_moves``.

    The first: an attribute that torch does not read says the opposite of what all parameters concerned are. The
    second: parameters that were trained and then frozen change in two sampled steps in a row although their gradients
    are zero, because the optimizer decays them or goes on with its momentum.
    """

    def __init__(self) -> None:
        self._looks = 0
        self._told: set[str] = set()
        self._trained: dict[str, set[int]] = {}  # positions of parameters that were trained, by timeline
        self._before: list[tuple[int, Tensor]] = []
        self._moved_before: dict[str, set[int]] = {}

    def first_step(self, sink: Sink, timeline: Timeline) -> None:
        """Note what is trained, and look for attributes that nothing reads."""
        self._trained[timeline.prefix] = {i for i, p in enumerate(timeline.parameters) if p.requires_grad}
        self._look(sink)

    def before_step(self, sink: Sink, timeline: Timeline) -> None:
        """Keep a few frozen tensors that the optimizer is going to act on."""
        self._before = []
        if not self._wants(timeline):
            return
        trained = self._trained.get(timeline.prefix, set())
        frozen = [
            i
            for i, p in enumerate(timeline.parameters)
            if not p.requires_grad and p.grad is not None and i in trained and not p.grad.is_sparse
        ]
        for i in sorted(frozen, key=lambda i: timeline.parameters[i].numel())[:_COMPARED]:
            # A gradient that the script has written itself, for a search without backward passes, is no leftover.
            if not bool(local_shard(timeline.parameters[i].grad).any()):
                self._before.append((i, local_shard(timeline.parameters[i].detach()).clone()))

    def after_step(self, sink: Sink, timeline: Timeline) -> None:
        """Compare them."""
        now = {i: local_shard(timeline.parameters[i].detach()) for i, _ in self._before}
        moved = {i for i, before in self._before if not torch.equal(before, now[i])}
        again = moved & self._moved_before.get(timeline.prefix, set())
        self._moved_before[timeline.prefix], self._before = moved, []
        if again and self._wants(timeline):
            self._told.add(timeline.prefix)
            self._tell_moved(sink, timeline)
        self._look(sink)

    def _wants(self, timeline: Timeline) -> bool:
        return timeline.prefix not in self._told and not is_capturing()

    def _tell_moved(self, sink: Sink, timeline: Timeline) -> None:
        frozen = {id(p): i for i, p in enumerate(timeline.parameters) if not p.requires_grad and p.grad is not None}
        decay = max(
            (float(group.get("weight_decay") or 0.0))
            for group in timeline.optimizer.param_groups
            if any(id(p) in frozen for p in group["params"])
        )
        names = [timeline.names[i] for i in frozen.values()]
        facts = {"timeline": timeline.prefix, "names": names[:_SHOWN], "total": len(names), "weight_decay": decay}
        sink.event(sink.run_step, "frozen_moves", facts)

    def _look(self, sink: Sink) -> None:
        self._looks += 1
        if "attribute" in self._told or not is_examined(self._looks):
            return
        found = [hit for root in sink.names.roots for hit in _attributes(root)]
        if found:
            self._told.add("attribute")
            attribute, value = found[0][1], found[0][2]
            alike = [(owner, tensors) for owner, name, v, tensors in found if (name, v) == (attribute, value)]
            names = [
                sink.names.modules.get(id(o), sink.names.parameters.get(id(o), type(o).__name__)) for o, _ in alike
            ]
            held = {id(p) for o in live_optimizers() for group in o.param_groups for p in group["params"]}
            facts = {
                "optimized": any(id(p) in held for o, _ in alike for p in _parameters(o)),
                "attribute": attribute,
                "value": value,
                "owner": "module" if isinstance(alike[0][0], nn.Module) else "parameter",
                "names": names[:_SHOWN],
                "total": len(names),
                "tensors": sum(tensors for _, tensors in alike),
                "numbers": sum(p.numel() for o, _ in alike for p in _parameters(o)),
            }
            sink.event(sink.run_step, "requires_grad_in_vain", facts)


def _attributes(root: nn.Module) -> Iterator[tuple[nn.Module | Tensor, str, bool, int]]:
    """Yield attributes that contradict all parameters concerned: owner, name, value, number of parameters.

    Below a module that is found nothing more is looked for.
    """
    covered: set[int] = set()
    for module in root.modules():
        if id(module) in covered:
            continue
        hit = _contradiction(module, (*_OF_MODULES, *_OF_ANYTHING))
        if hit is not None:
            covered.update(id(inner) for inner in module.modules())
            yield hit
            continue
        for p in module._parameters.values():
            hit = None if p is None else _contradiction(p, _OF_ANYTHING)
            if hit is not None:
                yield hit


def _contradiction(owner: Any, attributes: tuple[str, ...]) -> tuple[Any, str, bool, int] | None:
    own = vars(owner)
    for attribute in attributes:
        value = own.get(attribute)
        if isinstance(value, bool):
            parameters = _parameters(owner)
            if parameters and all(p.requires_grad != value for p in parameters):
                return owner, attribute, value, len(parameters)
    return None


def _parameters(owner: nn.Module | Tensor) -> list[Tensor]:
    return list(owner.parameters()) if isinstance(owner, nn.Module) else [owner]
