"""Whether the examples of a batch see each other in the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from poise.doctor.probes.probe import Probe
from poise.doctor.tap.user_line import user_line

if TYPE_CHECKING:
    from poise.doctor.tap.sink import Sink
    from poise.doctor.tap.timeline import Timeline

_SEQUENTIAL = (nn.RNNBase, nn.MultiheadAttention)
_KEPT = 16


class ExampleProbe(Probe):
    """Events ``batch_as_time``, ``softmax_over_batch`` and ``norm_over_batch``.

    The first: a layer that takes ``(time, batch, ...)`` is given ``(batch, time, ...)``. The others: within the model a
    softmax, a layer norm or ``normalize`` runs over the dimension of the batch. The shapes of the model's input and
    output tell which dimension that is.
    """

    def __init__(self) -> None:
        self._told = False
        self._across: list[tuple[str, str, tuple[int, ...], str]] = []  # function, module, shape, line
        self._told_across: set[str] = set()
        self._given: dict[int, tuple[nn.Module, tuple[int, ...]]] = {}  # shapes at sequential layers, in this step
        self._calls: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {}  # input and output shape of each module

    def forward(self, sink: Sink, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Note what the model and its sequential layers are given."""
        given = next((x for x in args if isinstance(x, Tensor)), None)
        made = output[0] if isinstance(output, tuple | list) and output else output
        if given is None or not given.dim():
            return
        if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == given.dim() >= 2:
            self._across.append(("layer_norm", _name(sink, module), tuple(given.shape), ""))
        if isinstance(module, _SEQUENTIAL) and not module.batch_first and given.dim() == 3:
            self._given[id(module)] = module, tuple(given.shape)
        elif module._modules and isinstance(made, Tensor):
            self._calls[id(module)] = tuple(given.shape), tuple(made.shape)

    def over_first_dimension(self, sink: Sink, module: nn.Module | None, function: str, given: Tensor) -> None:
        """Note what runs over dimension 0."""
        if len(self._across) < _KEPT and given.dim() >= 2:
            name = "" if module is None else _name(sink, module)
            self._across.append((function, name, tuple(given.shape), user_line()))

    def early_step(self, sink: Sink, timeline: Timeline) -> None:
        """Compare the batch of the model with the dimension that a layer takes for time, or normalises over."""
        given, calls, across = list(self._given.values()), self._calls, self._across
        self._given, self._calls, self._across = {}, {}, []
        roots = [calls[id(root)] for root in sink.names.roots if id(root) in calls]
        for taken, made in roots if across else ():
            for function, module, shape, source in across:
                if taken[0] == made[0] == shape[0] > 1 and _is_batch_first(made, shape):
                    self._tell_across(sink, function, module, shape, source)
        for taken, made in roots if given else ():
            # One output for each example: more dimensions may be time first, all the way.
            if len(made) in (1, 2) and made[0] == taken[0]:
                self._compare(sink, taken[0], given)

    def _tell_across(self, sink: Sink, function: str, module: str, shape: tuple[int, ...], source: str) -> None:
        kind = "softmax_over_batch" if function == "softmax" else "norm_over_batch"
        if kind not in self._told_across:
            self._told_across.add(kind)
            facts = {"function": function, "module": module, "shape": shape, "source": source}
            sink.event(sink.run_step, kind, facts)

    def _compare(self, sink: Sink, batch: int, given: list[tuple[nn.Module, tuple[int, ...]]]) -> None:
        for module, (first, second, _) in given:
            # A single sequence in the place of a batch has a second dimension of 1.
            if not self._told and first == batch and second not in (1, batch):
                self._told = True
                name = _name(sink, module)
                payload = {"module": name, "class": type(module).__name__, "batch": batch, "taken": second}
                sink.event(sink.run_step, "batch_as_time", payload)


def _is_batch_first(made: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Return whether the first dimension of ``shape`` can only be that of the examples.

    More dimensions of the output may be time first, unless the shape is that of attention: queries and keys last. In a
    matrix of all pairs examples are compared on purpose, and a single column is a weight for each example of a set.
    """
    is_attention = len(shape) >= 3 and shape[-1] == shape[-2] != shape[0]
    is_pairs = len(shape) == 2 and shape[1] in (1, shape[0])
    return (len(made) in (1, 2) or is_attention) and not is_pairs


def _name(sink: Sink, module: nn.Module) -> str:
    return sink.names.modules.get(id(module), type(module).__name__)
