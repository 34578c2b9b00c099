"""A causal graph in which some mechanisms change between environments."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

MOST_SUBSETS = 2**16


@dataclass(frozen=True, slots=True)
class SubsetClass:
    """Subsets of stable inputs with one and the same predictor.

    Args:
        representative: the smallest member: the Markov boundary of the target within each member.
        members: all members.
    """

    representative: frozenset[str]
    members: tuple[frozenset[str], ...]


class StableGraph:
    """A directed acyclic graph of a target, inputs with stable mechanisms, and inputs whose mechanisms change.

    Args:
        edges: pairs of cause and effect, or a ``networkx.DiGraph``.
        target: the variable that is predicted; its mechanism is stable.
        mutable: variables whose mechanism differs between environments.
        nodes: variables without edges.

    Raises:
        ValueError: if the edges have a cycle, the target is mutable, or a mutable variable is not in the graph.

    References:
        M. Liu et al. (2023), Which invariance should we transfer? A causal minimax learning approach, arXiv:2107.01876.

    Example:
        >>> graph = StableGraph([("Y", "M"), ("Y", "X"), ("M", "X")], target="Y", mutable=["M"])
        >>> graph.full_set_optimal, len(graph.classes())
        (False, 2)
    """

    def __init__(self, edges: Any, target: str, mutable: Iterable[str], nodes: Iterable[str] = ()) -> None:
        pairs = [(str(a), str(b)) for a, b in getattr(edges, "edges", edges)]
        extra = [*getattr(edges, "nodes", ()), *nodes, target]
        names = dict.fromkeys([*(name for pair in pairs for name in pair), *map(str, extra)])
        self.target, self.mutable = target, tuple(dict.fromkeys(mutable))
        self.edges = tuple(dict.fromkeys(pairs))
        self._parents = {name: tuple(a for a, b in self.edges if b == name) for name in names}
        self._children = {name: tuple(b for a, b in self.edges if a == name) for name in names}
        if target in self.mutable:
            raise ValueError(f"mutable must not hold the target {target!r}")
        unknown = [name for name in self.mutable if name not in names]
        if unknown:
            raise ValueError(f"mutable must be in the graph, got {unknown}")
        self.order = _topological(names, self._parents)

    @property
    def stable(self) -> tuple[str, ...]:
        """Inputs with a stable mechanism, causes before effects."""
        return tuple(name for name in self.order if name != self.target and name not in self.mutable)

    def parents(self, node: str) -> tuple[str, ...]:
        """Return the direct causes of a variable."""
        return self._parents[node]

    def children(self, node: str) -> tuple[str, ...]:
        """Return the direct effects of a variable."""
        return self._children[node]

    def descendants(self, nodes: Iterable[str], cut: Iterable[str] = ()) -> frozenset[str]:
        """Return all effects of variables, without these, when the edges into ``cut`` are removed."""
        start, closed = set(nodes), set(cut)
        found, todo = set[str](), list(start)
        while todo:
            new = [child for child in self._children[todo.pop()] if child not in closed and child not in found | start]
            found.update(new)
            todo += new
        return frozenset(found)

    @cached_property
    def x_m0(self) -> frozenset[str]:
        """Mutable effects of the target."""
        return frozenset(self.mutable) & set(self._children[self.target])

    @cached_property
    def k(self) -> frozenset[str]:
        """Effects of these."""
        return self.descendants(self.x_m0) - self.x_m0

    @property
    def full_set_optimal(self) -> bool:
        """Whether the graph alone shows that keeping all stable inputs has the smallest worst-case risk.

        The condition is sufficient: where it fails, all of them may still be best.
        """
        return not self.k & set(self._children[self.target])

    @cached_property
    def x_do(self) -> frozenset[str]:
        """Variables that are set independently to sample the interventional distribution."""
        return self.x_m0 | (self.descendants(self.x_m0) - set(self._children[self.target]))

    @cached_property
    def regenerated(self) -> tuple[str, ...]:
        """Effects of these, which then follow from their structural equations, causes first."""
        found = self.descendants(self.x_do, cut=self.x_do) - self.x_do
        return tuple(name for name in self.order if name in found)

    def classes(self, max_classes: int = MOST_SUBSETS) -> list[SubsetClass]:
        """Return the equivalence classes of all subsets of stable inputs, those with few inputs first.

        Two subsets are equivalent if the target is independent of what distinguishes them given what they share, in the
        graph without mutable variables.

        Args:
            max_classes: most subsets that are looked at.

        Raises:
            ValueError: if there are more subsets than that.
        """
        d = len(self.stable)
        if 2**d > max_classes:
            raise ValueError(f"there are 2^{d} subsets of stable inputs, more than max_classes={max_classes}")
        separation = _Separation(self)
        boundary: dict[int, int] = {}
        for subset in sorted(range(2**d), key=int.bit_count):
            smaller = next((v for v in _bits(subset) if separation.is_separated(v, subset & ~(1 << v))), None)
            boundary[subset] = subset if smaller is None else boundary[subset & ~(1 << smaller)]
        members: dict[int, list[int]] = {}
        for subset, smallest in boundary.items():
            members.setdefault(smallest, []).append(subset)
        return [SubsetClass(self._names(label), tuple(map(self._names, group))) for label, group in members.items()]

    def representative(self, subset: Iterable[str]) -> frozenset[str]:
        """Return the smallest subset with the predictor of the given one.

        Raises:
            ValueError: if it holds something else than stable inputs.
        """
        kept = set(subset)
        if not kept <= set(self.stable):
            raise ValueError(f"subset must hold stable inputs only, got {sorted(kept - set(self.stable))}")
        separation = _Separation(self)
        mask = sum(1 << i for i, name in enumerate(self.stable) if name in kept)
        while (v := next((v for v in _bits(mask) if separation.is_separated(v, mask & ~(1 << v))), None)) is not None:
            mask &= ~(1 << v)
        return self._names(mask)

    def _names(self, mask: int) -> frozenset[str]:
        return frozenset(self.stable[i] for i in _bits(mask))


class _Separation:
    """d-separation from the target in the graph of target and stable inputs, on bit masks."""

    def __init__(self, graph: StableGraph) -> None:
        names = [*graph.stable, graph.target]
        place = {name: i for i, name in enumerate(names)}
        self._target = place[graph.target]
        self._parents = [sum(1 << place[p] for p in graph.parents(name) if p in place) for name in names]
        self._children = [sum(1 << place[c] for c in graph.children(name) if c in place) for name in names]
        self._ancestors = [1 << i for i in range(len(names))]
        for name in graph.order:
            if name in place:
                for parent in _bits(self._parents[place[name]]):
                    self._ancestors[place[name]] |= self._ancestors[parent]

    def is_separated(self, node: int, given: int) -> bool:
        """Whether a stable input and the target are d-separated given others."""
        ancestors = 0
        for i in _bits(given):
            ancestors |= self._ancestors[i]
        # Breadth first over nodes that a path enters from a child (up) or from a parent (down).
        up, down = 1 << self._target, 0
        seen_up, seen_down = up, 0
        while up or down:
            new_up = new_down = 0
            for i in _bits(up & ~given):
                new_up |= self._parents[i]
                new_down |= self._children[i]
            for i in _bits(down):
                if not given >> i & 1:
                    new_down |= self._children[i]
                if ancestors >> i & 1:  # a collider that is given, or has an effect that is
                    new_up |= self._parents[i]
            up, down = new_up & ~seen_up, new_down & ~seen_down
            seen_up |= up
            seen_down |= down
            if (seen_up | seen_down) >> node & 1:
                return False
        return True


def _bits(mask: int) -> Iterable[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def _topological(names: Iterable[str], parents: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    order: list[str] = []
    left: Sequence[str] = list(names)
    while left:
        ready = [name for name in left if all(parent in order for parent in parents[name])]
        if not ready:
            raise ValueError(f"edges must have no cycle, got one among {', '.join(sorted(left))}")
        order += ready
        left = [name for name in left if name not in ready]
    return tuple(order)
