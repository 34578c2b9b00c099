"""Exact worst-case risks where all variables are discrete."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping
from functools import cached_property
from itertools import product

import numpy as np
from jaxtyping import Float

from poise.shift.minimax.stable_graph import StableGraph

MOST_TABLES = 10**6


class TabularModel:
    """Conditional probabilities of the target and the stable inputs of a graph, for exact risks.

    Args:
        graph: the graph.
        tables: for the target and each stable input its probabilities given its parents: one axis for each parent, in
            the order of ``graph.parents``, and last its own.
        states: number of states of each mutable variable.
        values: value of each state of the target; 0, 1, ... by default.

    Raises:
        ValueError: if a table is missing, has the wrong axes, or does not sum to 1.
    """

    def __init__(
        self,
        graph: StableGraph,
        tables: Mapping[str, Float[np.ndarray, "..."]],
        states: Mapping[str, int],
        values: Iterable[float] | None = None,
    ) -> None:
        self.graph = graph
        mechanisms = [name for name in graph.order if name not in graph.mutable]
        missing = [name for name in mechanisms if name not in tables] + [m for m in graph.mutable if m not in states]
        if missing:
            raise ValueError(f"tables (states of mutable variables) must be given for {missing}")
        self._sizes = {**{name: np.shape(tables[name])[-1] for name in mechanisms}, **states}
        for name in mechanisms:
            wanted = (*(self._sizes[parent] for parent in graph.parents(name)), self._sizes[name])
            if np.shape(tables[name]) != wanted or not np.allclose(np.sum(tables[name], -1), 1):
                raise ValueError(f"tables[{name!r}] must be of shape {wanted} and sum to 1 over its last axis")
        self._letter = dict(zip(graph.order, string.ascii_letters, strict=False))
        self._tables = {name: np.asarray(tables[name], dtype=np.float64) for name in mechanisms}
        size = self._sizes[graph.target]
        self._values = np.arange(size, dtype=np.float64) if values is None else np.asarray(list(values), np.float64)

    @cached_property
    def _joint(self) -> np.ndarray:
        """Probability of all but the mutable variables, for each setting of these; axes in the order of the graph."""
        names = self.graph.order
        parts = [self._axes([*self.graph.parents(name), name]) for name in self._tables]
        parts += [self._letter[name] for name in self.graph.mutable]
        ones = [np.ones(self._sizes[name]) for name in self.graph.mutable]
        return np.einsum(f"{','.join(parts)}->{self._axes(names)}", *self._tables.values(), *ones, optimize=True)

    def predictor(self, subset: Iterable[str]) -> Float[np.ndarray, "..."]:
        """Return the mean of the target given the subset, under interventions on all mutable variables.

        The axes are those of the graph's order; of length 1 where a variable is not used.
        """
        kept = {*subset, *self.graph.mutable}
        self._check(kept)
        summed = tuple(i for i, name in enumerate(self.graph.order) if name not in kept)
        mass = self._joint.sum(summed, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = (self._joint * self._target_values).sum(summed, keepdims=True) / mass
        return np.where(mass > 0, mean, 0.0)

    def risks(self, subset: Iterable[str]) -> dict[tuple[int, ...], float]:
        """Return the risk under every deterministic mechanism of the mutable variables.

        A mechanism is the state of each mutable variable for each state of its parents, one after the other.

        Raises:
            ValueError: if there are more than a million mechanisms; names the variable with most.
        """
        mutable = self.graph.mutable
        kept = list(dict.fromkeys([n for m in mutable for n in (*self.graph.parents(m), m)]))
        weighted = self._joint * (self._target_values - self.predictor(subset)) ** 2
        loss = np.einsum(f"{self._axes(self.graph.order)}->{self._axes(kept)}", weighted)
        shapes = [tuple(self._sizes[parent] for parent in self.graph.parents(m)) for m in mutable]
        counts = [self._sizes[m] ** int(np.prod(shape, dtype=int)) for m, shape in zip(mutable, shapes, strict=True)]
        if np.prod(counts, dtype=float) > MOST_TABLES:
            worst = mutable[int(np.argmax(counts))]
            raise ValueError(f"{worst!r} has {max(counts)} mechanisms, together more than {MOST_TABLES}")
        choices = [
            product(range(self._sizes[m]), repeat=int(np.prod(s, dtype=int)))
            for m, s in zip(mutable, shapes, strict=True)
        ]
        out = {}
        for choice in product(*choices):
            indicator = [
                np.eye(self._sizes[m])[np.reshape(states, shape)]
                for m, states, shape in zip(mutable, choice, shapes, strict=True)
            ]
            parts = [self._axes([*self.graph.parents(m), m]) for m in mutable]
            value = np.einsum(f"{','.join([self._axes(kept), *parts])}->", loss, *indicator)
            out[tuple(state for states in choice for state in states)] = float(value)
        return out

    def worst_case_risk(self, subset: Iterable[str]) -> float:
        """Return the largest mean squared error over all environments of the predictor that keeps a subset."""
        return max(self.risks(subset).values())

    def risk_under(self, subset: Iterable[str], mechanisms: Mapping[str, Float[np.ndarray, "..."]]) -> float:
        """Return the risk under given mechanisms of the mutable variables, tables like those of the others."""
        names = self.graph.order
        weighted = self._joint * (self._target_values - self.predictor(subset)) ** 2
        parts = [self._axes([*self.graph.parents(m), m]) for m in self.graph.mutable]
        tables = [mechanisms[m] for m in self.graph.mutable]
        return float(np.einsum(f"{','.join([self._axes(names), *parts])}->", weighted, *tables))

    @property
    def _target_values(self) -> np.ndarray:
        shape = [len(self._values) if name == self.graph.target else 1 for name in self.graph.order]
        return self._values.reshape(shape)

    def _axes(self, names: Iterable[str]) -> str:
        return "".join(self._letter[name] for name in names)

    def _check(self, kept: set[str]) -> None:
        wrong = kept - set(self.graph.stable) - set(self.graph.mutable)
        if wrong:
            raise ValueError(f"subset must hold stable inputs only, got {sorted(wrong)}")
