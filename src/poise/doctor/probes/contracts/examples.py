"""Whether the examples of a batch see each other in the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from poise.doctor.probes.probe import Probe

if TYPE_CHECKING:
    from poise.doctor.tap.sink import Sink
    from poise.doctor.tap.timeline import Timeline

_SEQUENTIAL = (nn.RNNBase, nn.MultiheadAttention)


class ExampleProbe(Probe):
    """Event ``batch_as_time``: a layer that takes ``(time, batch, ...)`` is given ``(batch, time, ...)``."""

    def __init__(self) -> None:
        self._told = False
        self._given: dict[int, tuple[nn.Module, tuple[int, ...]]] = {}  # shapes at sequential layers, in this step
        self._calls: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {}  # input and output shape of each module

    def forward(self, sink: Sink, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Note what the model and its sequential layers are given."""
        given = next((x for x in args if isinstance(x, Tensor)), None)
        made = output[0] if isinstance(output, tuple | list) and output else output
        if self._told or given is None or not given.dim():
            return
        if isinstance(module, _SEQUENTIAL) and not module.batch_first and given.dim() == 3:
            self._given[id(module)] = module, tuple(given.shape)
        elif module._modules and isinstance(made, Tensor):
            self._calls[id(module)] = tuple(given.shape), tuple(made.shape)

    def early_step(self, sink: Sink, timeline: Timeline) -> None:
        """Compare the batch of the model with the dimension that a layer takes for time."""
        given, calls = list(self._given.values()), self._calls
        self._given, self._calls = {}, {}
        roots = [calls[id(root)] for root in sink.names.roots if id(root) in calls]
        for taken, made in roots if given else ():
            # One output for each example: more dimensions may be time first, all the way.
            if len(made) in (1, 2) and made[0] == taken[0]:
                self._compare(sink, taken[0], given)

    def _compare(self, sink: Sink, batch: int, given: list[tuple[nn.Module, tuple[int, ...]]]) -> None:
        for module, (first, second, _) in given:
            # A single sequence in the place of a batch has a second dimension of 1.
            if not self._told and first == batch and second not in (1, batch):
                self._told = True
                name = sink.names.modules.get(id(module), type(module).__name__)
                payload = {"module": name, "class": type(module).__name__, "batch": batch, "taken": second}
                sink.event(sink.run_step, "batch_as_time", payload)
