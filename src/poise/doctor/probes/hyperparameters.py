"""The optimizer and its model, as recorded facts."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from poise.doctor.probes.probe import Probe

if TYPE_CHECKING:
    from poise.doctor.tap.sink import Sink
    from poise.doctor.tap.timeline import Timeline

_SHOWN = ("lr", "betas", "eps", "weight_decay", "momentum", "alpha", "amsgrad", "maximize", "foreach", "fused")


class HyperparameterProbe(Probe):
    """Events ``model``, ``optimizer`` (again whenever more than the learning rate changes) and ``first_step``."""

    def __init__(self) -> None:
        self._ordered: set[str] = set()  # timelines whose model event tells the order of the forward pass
        self._timelines: list[Timeline] = []

    def first_step(self, sink: Sink, timeline: Timeline) -> None:
        """Describe the model, the optimizer, and what the optimizer begins with."""
        self._describe_model(sink, timeline)
        facts = {
            "state_empty": not timeline.optimizer.state,
            "stateful": _is_stateful(timeline),
            "adaptive": is_adaptive(timeline),
            "loaded_share": _loaded_share(sink, timeline),
            **self._trained_before(timeline),
        }
        self._timelines.append(timeline)
        sink.event(0, "first_step", {"timeline": timeline.prefix, "run_step": sink.run_step, **facts})
        self._describe_optimizer(sink, timeline)

    def before_step(self, sink: Sink, timeline: Timeline) -> None:
        """Describe what has changed, or has not been seen yet."""
        if timeline.prefix not in self._ordered:  # the first step was not sampled
            self._describe_model(sink, timeline)
        self._describe_optimizer(sink, timeline)

    def _trained_before(self, timeline: Timeline) -> dict[str, Any]:
        """Return how far an earlier optimizer got with weights of the same shapes."""
        shapes = [p.shape for p in timeline.parameters]
        for earlier in reversed(self._timelines):
            if earlier.recent_losses and [p.shape for p in earlier.parameters] == shapes:
                return {"earlier_steps": earlier.step, "earlier_loss": statistics.median(earlier.recent_losses)}
        return {}

    def _describe_model(self, sink: Sink, timeline: Timeline) -> None:
        facts = describe_model(sink)
        if facts["order"]:
            self._ordered.add(timeline.prefix)
        sink.event(timeline.step, "model", facts)

    def _describe_optimizer(self, sink: Sink, timeline: Timeline) -> None:
        groups = _describe_groups(timeline)
        fixed = [{k: v for k, v in group.items() if k != "lr"} for group in groups]
        if fixed != timeline.hyperparameters:
            timeline.hyperparameters = fixed
            payload = {"timeline": timeline.prefix, "class": type(timeline.optimizer).__name__, "groups": groups}
            sink.event(timeline.step, "optimizer", payload)


def describe_model(sink: Sink) -> dict[str, Any]:
    """Return the classes, shapes and dtypes of the models that are trained."""
    modules = {sink.names.modules[id(m)]: type(m).__name__ for root in sink.names.roots for m in root.modules()}
    parameters = {
        sink.names.parameters[id(p)]: {
            "shape": list(p.shape),
            "dtype": str(p.dtype).removeprefix("torch."),
            "requires_grad": p.requires_grad,
        }
        for root in sink.names.roots
        for p in root.parameters()
    }
    classes = ", ".join(type(root).__name__ for root in sink.names.roots)
    return {"class": classes, "modules": modules, "parameters": parameters, "order": forward_order(sink)}


def forward_order(sink: Sink) -> list[str]:
    """Return the parameters' names in the order in which their modules finished the last forward pass seen."""
    order: dict[str | None, None] = {}
    for signal, module, _, _ in sink.interval.observations:
        if signal == "act_rms" and module is not None:
            order.update((sink.names.parameters.get(id(p)), None) for p in module._parameters.values() if p is not None)
    return [name for name in order if name is not None]


def _describe_groups(timeline: Timeline) -> list[dict[str, Any]]:
    names = iter(timeline.names)
    return [
        {
            **{k: _plain(group[k]) for k in _SHOWN if group.get(k) is not None},
            "parameters": [next(names) for _ in group["params"]],
        }
        for group in timeline.optimizer.param_groups
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return float(value) if value.device.type == "cpu" else "tensor"
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value


def is_adaptive(timeline: Timeline) -> bool:
    """Return whether the optimizer divides gradients by their size."""
    # What keeps a second moment either has betas (the Adam family) or alpha (RMSprop).
    group = timeline.optimizer.param_groups[0]
    return "betas" in group or "alpha" in group or isinstance(timeline.optimizer, torch.optim.Adagrad)


def _loaded_share(sink: Sink, timeline: Timeline) -> float:
    """Return which share of the optimizer's weights ``load_state_dict`` has filled."""
    sizes = [(p.numel(), id(p) in sink.loaded) for p in timeline.parameters]
    return sum(size for size, loaded in sizes if loaded) / max(sum(size for size, _ in sizes), 1)


def _is_stateful(timeline: Timeline) -> bool:
    return is_adaptive(timeline) or any(group.get("momentum", 0.0) for group in timeline.optimizer.param_groups)
