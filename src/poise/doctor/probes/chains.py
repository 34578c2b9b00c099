"""Which weights follow one another on the way from the input to the loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from poise.doctor.probes.probe import Probe

if TYPE_CHECKING:
    from poise.doctor.tap.backward_pass import BackwardPass
    from poise.doctor.tap.sink import Sink

_NODES = 20_000  # of a graph; a larger one is left alone
_CHAINS = 8


class ChainProbe(Probe):
    """Event ``chains``, once: for each weight that no other follows, the weights through which its input passes.

    Towers that stand side by side (a policy and a value network, the two sides of a matching model) are chains of their
    own. It is read from the graph of the loss; nothing is computed.
    """

    def __init__(self) -> None:
        self._done = False

    def before_backward(self, sink: Sink, backward: BackwardPass) -> None:
        """Read the graph, once the names of the parameters are known."""
        if self._done or not sink.names.parameters or not isinstance(backward.root, Tensor):
            return
        self._done = True
        chains = weight_chains(backward.root.grad_fn, sink.names.parameters)
        if chains:
            sink.event(sink.run_step, "chains", {"chains": chains})


def weight_chains(root: Any, names: Mapping[int, str]) -> list[list[str]]:
    """Return the chains of named matrices in the graph below ``root``, those of the most weights first.

    Args:
        root: node of the graph of a loss.
        names: of parameters, by id.

    Returns:
        For every matrix that nothing else named follows: the names of those before it, and its own. Empty for a graph
        of more than 20,000 nodes.
    """
    order = _topological(root)
    if order is None:
        return []
    matrices = [n for n in order if _is_named_matrix(n, names)]
    bits = {node: 1 << i for i, node in enumerate(matrices)}
    upstream: dict[Any, int] = {}  # by node: the matrices that its value depends on
    before: dict[Any, int] = dict.fromkeys(matrices, 0)  # by matrix: those that its input depends on
    for node in order:  # parents (what makes its arguments) come first
        parents = [parent for parent, _ in node.next_functions if parent is not None]
        reached = bits.get(node, 0)
        for parent in parents:
            reached |= upstream[parent]
        upstream[node] = reached
        for parent in parents:
            weight = _weight_of(parent, bits)
            if weight is not None:
                before[weight] |= reached & ~bits[weight]
    followed = 0
    for reached in before.values():
        followed |= reached
    ends = [node for node in matrices if not bits[node] & followed]
    depth = sorted(matrices, key=lambda node: before[node].bit_count())
    chains = [[node for node in depth if bits[node] & (before[end] | bits[end])] for end in ends]
    chains = sorted(chains, key=len, reverse=True)[:_CHAINS]
    return [[names[id(node.variable)] for node in chain] for chain in chains]


def _topological(root: Any) -> list[Any] | None:
    """Return the nodes so that each comes after those that make its arguments."""
    order: list[Any] = []
    seen: set[Any] = set()
    stack: list[tuple[Any, bool]] = [(root, False)]
    while stack:
        node, is_done = stack.pop()
        if node is None:
            continue
        if is_done:
            order.append(node)
            continue
        if node in seen:
            continue
        seen.add(node)
        if len(seen) > _NODES:
            return None
        stack.append((node, True))
        stack.extend((parent, False) for parent, _ in node.next_functions)
    return order


def _is_named_matrix(node: Any, names: Mapping[int, str]) -> bool:
    variable = getattr(node, "variable", None)
    return variable is not None and variable.dim() >= 2 and id(variable) in names


def _weight_of(node: Any, bits: Mapping[Any, int]) -> Any:
    """Return the matrix that a node is, or passes on transposed or in another precision; ``None`` if it is none."""
    while node is not None and node not in bits and len(node.next_functions) == 1:
        node = node.next_functions[0][0]
    return node if node in bits else None
