"""The blocks of a deep network: their order, whether they are residual, and where they normalise."""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from poise.doctor.probes.probe import Probe

if TYPE_CHECKING:
    from poise.doctor.tap.sink import Sink
    from poise.doctor.tap.timeline import Timeline

_FEWEST = 4
_NODES = 3  # from a block's output back to the addition of its input


class BlockProbe(Probe):
    """Event ``blocks``, once: names of the blocks of one class that follow one another, in the order of their calls.

    ``residual``: how many of them add their input to what they compute. ``post_norm``: how many return what a LayerNorm
    (or RMSNorm) of theirs has returned, so that the sum is normalised. Read from the graph; nothing is computed.
    """

    def __init__(self) -> None:
        self._blocks: dict[int, nn.Module] | None = None
        self._called: dict[int, tuple[bool, bool]] = {}  # by block: is it residual, does it end in a norm
        self._normed: weakref.ref[Tensor] | None = None
        self._done = False

    def forward(self, sink: Sink, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Look at the output of a block."""
        if self._done or not sink.names.roots or not isinstance(output, Tensor):
            return
        if self._blocks is None:
            self._blocks = {id(b): b for root in sink.names.roots for b in _blocks_of(root)}
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):
            self._normed = weakref.ref(output)
        if id(module) in self._blocks:
            is_normed = self._normed is not None and self._normed() is output
            self._called[id(module)] = (_adds_its_input(args, output), is_normed)

    def after_step(self, sink: Sink, timeline: Timeline) -> None:
        """Record the blocks once they were seen."""
        if self._done or not self._called:
            return
        self._done = True
        names = [sink.names.modules[key] for key in self._called if key in sink.names.modules]
        residual, normed = (sum(flags) for flags in zip(*self._called.values(), strict=True))
        if len(names) >= _FEWEST:
            facts = {"names": names, "residual": residual, "post_norm": normed}
            sink.event(timeline.step, "blocks", facts)


def _blocks_of(root: nn.Module) -> list[nn.Module]:
    """Return the longest row of modules of one class in a list or sequence; modules that have parts of their own."""
    rows: list[list[nn.Module]] = [[]]
    for module in root.modules():
        if isinstance(module, nn.ModuleList | nn.Sequential):
            parts = [m for m in module if any(True for _ in m.children())]
            rows += [list(row) for _, row in itertools.groupby(parts, key=type)]
    longest = max(rows, key=len)
    return longest if len(longest) >= _FEWEST else []


def _adds_its_input(args: tuple[Any, ...], output: Tensor) -> bool:
    """Return whether ``output`` is made from a sum of which the first argument is a part."""
    given = args[0].grad_fn if args and isinstance(args[0], Tensor) else None
    node = output.grad_fn
    for _ in range(_NODES):
        if node is None or given is None:
            return False
        before = [parent for parent, _ in node.next_functions]
        if node.name().startswith("AddBackward"):
            return any(_is_from(parent, given) for parent in before)
        node = before[0] if before else None
    return False


def _is_from(node: Any, given: Any) -> bool:
    """Return whether a part of a sum is ``given`` or begins another sum of it (a block of two residual branches)."""
    for _ in range(2 * _NODES):
        if node is given:
            return True
        if node is None or not (node.name().startswith("AddBackward") or "Norm" in node.name()):
            return False
        node = node.next_functions[0][0] if node.next_functions else None
    return False
