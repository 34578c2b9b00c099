"""The optimizer and its model, as recorded facts."""

from __future__ import annotations

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

    def before_step(self, sink: Sink, timeline: Timeline) -> None:
        """Describe what has not been described yet."""
        optimizer = timeline.optimizer
        if timeline.step == 0:
            sink.event(0, "model", describe_model(sink))
            facts = {
                "state_empty": not optimizer.state,
                "stateful": _is_stateful(timeline),
                "adaptive": is_adaptive(timeline),
            }
            sink.event(0, "first_step", {"timeline": timeline.prefix, "run_step": sink.run_step, **facts})
        groups = _describe_groups(timeline)
        fixed = [{k: v for k, v in group.items() if k != "lr"} for group in groups]
        if fixed != timeline.hyperparameters:
            timeline.hyperparameters = fixed
            payload = {"timeline": timeline.prefix, "class": type(optimizer).__name__, "groups": groups}
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


def _is_stateful(timeline: Timeline) -> bool:
    return is_adaptive(timeline) or any(group.get("momentum", 0.0) for group in timeline.optimizer.param_groups)
