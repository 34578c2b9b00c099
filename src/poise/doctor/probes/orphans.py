"""Parameters that are not trained."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from poise.doctor.probes.probe import Probe
from poise.doctor.tap.discovery import live_modules

if TYPE_CHECKING:
    from poise.doctor.tap.backward_pass import BackwardPass
    from poise.doctor.tap.sink import Sink
    from poise.doctor.tap.timeline import Timeline

_PATIENCE = 10  # steps after which a parameter without a gradient is taken not to get one
_GRAPHS, _NODES = 3, 20_000  # backward passes whose graphs are searched, and how far


class OrphanProbe(Probe):
    """Events ``orphans`` and ``unregistered``.

    ``orphans``: parameters in no optimizer, without a gradient so far, or of no live module; of those without a
    gradient the ones that were used before any other (``cut_off``). ``unregistered``: parameters that get a gradient
    but belong to no optimizer and to no model.
    """

    def __init__(self) -> None:
        self._seen: dict[str, set[int]] = {}
        self._recorded: set[str] = set()
        self._used: dict[int, nn.Module] = {}  # modules that ran in training, in the order of their first call
        self._leaves: dict[int, nn.Parameter] = {}  # what a backward pass reaches
        self._graphs = 0

    def forward(self, sink: Sink, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Note that a module with parameters of its own is used."""
        if module._parameters:
            self._used.setdefault(id(module), module)

    def before_backward(self, sink: Sink, backward: BackwardPass) -> None:
        """Collect the parameters that the graph ends in."""
        if self._graphs < _GRAPHS and isinstance(backward.root, Tensor):
            self._graphs += 1
            self._leaves.update((id(p), p) for p in _leaves(backward.root))

    def early_step(self, sink: Sink, timeline: Timeline) -> None:
        """Note which parameters get a gradient, and record the others once."""
        if "unregistered" not in self._recorded and sink.names.roots:
            self._recorded.add("unregistered")
            self._record_unregistered(sink)
        seen = self._seen.setdefault(timeline.prefix, set())
        seen.update(i for i, p in enumerate(timeline.parameters) if p.grad is not None)
        if timeline.step < _PATIENCE or timeline.prefix in self._recorded:
            return
        self._recorded.add(timeline.prefix)
        named = sink.names.parameters
        trained = [i for i, p in enumerate(timeline.parameters) if p.requires_grad]
        # A tensor of its own (a temperature, a learned deviation) belongs to no module, and gets a gradient.
        lost = [i for i in trained if id(timeline.parameters[i]) not in named and i not in seen] if named else []
        idle = [i for i in trained if i not in seen and i not in lost]
        payload = {
            "timeline": timeline.prefix,
            "unoptimized": _unoptimized(sink),
            "no_gradient": [timeline.names[i] for i in idle],
            "cut_off": self._cut_off(timeline, idle),
            "replaced": _replaced(sink, timeline, lost),
        }
        self._used.clear()
        if any(payload[k] for k in ("unoptimized", "no_gradient", "replaced")):
            sink.event(timeline.step, "orphans", payload)

    def _cut_off(self, timeline: Timeline, idle: list[int]) -> list[str]:
        """Name the idle parameters of modules that ran before any module that gets a gradient.

        Modules without a gradient that run later may be extras whose output nobody uses.
        """
        names = {id(timeline.parameters[i]): timeline.names[i] for i in idle}
        own = {id(p) for p in timeline.parameters}
        cut: list[str] = []
        for module in self._used.values():
            mine = [id(p) for p in module._parameters.values() if p is not None and p.requires_grad and id(p) in own]
            if any(p not in names for p in mine):
                break
            cut += [names[p] for p in mine]
        return cut

    def _record_unregistered(self, sink: Sink) -> None:
        held = {id(p) for optimizer in live_optimizers() for g in optimizer.param_groups for p in g["params"]}
        held |= sink.optimized
        unknown = [p for key, p in self._leaves.items() if key not in held and key not in sink.names.parameters]
        self._leaves.clear()
        if not unknown:
            return
        owners = _owners(unknown)
        places = _places(sink.names.roots)
        names, parts = [], set()
        for p in unknown:
            owner = owners.get(id(p))
            if owner is None:
                names.append(f"{tuple(p.shape)} made in forward")
                parts.add("forward")
            elif id(owner) in places:
                names.append(places[id(owner)])
                parts.add("list")
            elif owner.training:
                names.append(type(owner).__name__)
                parts.add("model")
        if names:
            trained = sum(p.numel() for root in sink.names.roots for p in root.parameters())
            facts = {"names": list(dict.fromkeys(names)), "numbers": sum(p.numel() for p in unknown)}
            sink.event(sink.run_step, "unregistered", {**facts, "where": sorted(parts), "trained": trained})


def _leaves(root: Tensor) -> Iterator[nn.Parameter]:
    """Return the parameters that a backward pass from ``root`` reaches."""
    queue: list[Any] = [root.grad_fn]
    seen: set[Any] = set()
    while queue and len(seen) < _NODES:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, nn.Parameter):
            yield leaf
        queue.extend(before for before, _ in node.next_functions)


def live_optimizers() -> list[Optimizer]:
    """Return every optimizer alive in this process."""
    objects = gc.get_objects()
    kinds = {kind for kind in set(map(type, objects)) if issubclass(kind, Optimizer)}
    return [o for o in objects if type(o) in kinds and "param_groups" in o.__dict__]


def _owners(parameters: list[nn.Parameter]) -> dict[int, nn.Module]:
    """Return the live modules that hold ``parameters``, by id of the parameter."""
    wanted = {id(p) for p in parameters}
    return {
        id(p): module
        for module in live_modules()
        for p in module.__dict__.get("_parameters", {}).values()
        if id(p) in wanted
    }


def _places(roots: list[nn.Module]) -> dict[int, str]:
    """Name the modules that lie in lists, tuples and dictionaries of ``roots``, where torch does not see them."""
    places: dict[int, str] = {}
    for root in roots:
        for prefix, module in root.named_modules():
            for name, value in vars(module).items():
                if name.startswith("_"):
                    continue
                if isinstance(value, list | tuple):
                    items: Any = enumerate(value)
                elif isinstance(value, dict):
                    items = value.items()
                else:
                    continue
                for key, item in items:
                    if isinstance(item, nn.Module):
                        place = f"{prefix}.{name}[{key!r}]".lstrip(".")
                        places.update((id(inner), place) for inner in item.modules())
    return places


def _replaced(sink: Sink, timeline: Timeline, lost: list[int]) -> list[str]:
    """Name tensors of no live module by what is in their place in the model, with their shapes."""
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
    """Name trainable parameters that no optimizer has, save copies of trained ones (averages, target networks)."""
    trainable = [p for root in sink.names.roots for p in root.parameters() if p.requires_grad]
    return [sink.names.parameters[id(p)] for p in trainable if id(p) not in sink.optimized | sink.copied]
