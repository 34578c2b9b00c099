"""The subset of stable inputs with the smallest worst-case risk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from poise.report import Figure, Report, Table, Text
from poise.shift.minimax.drawing import graph_figure
from poise.shift.minimax.stable_graph import StableGraph
from poise.tools.listing import listing
from poise.tools.number import number

_SHOWN = 20


@dataclass(frozen=True, slots=True, eq=False)
class MinimaxResult:
    """The result of a search.

    Args:
        graph: the graph.
        risks: worst-case risk of each class of subsets, by its smallest member.
        evaluations: number of risks that were computed.
        subsets: number of all subsets.
    """

    graph: StableGraph
    risks: Mapping[frozenset[str], float]
    evaluations: int
    subsets: int

    @property
    def best(self) -> frozenset[str]:
        """The subset with the smallest worst-case risk; of equal ones the smallest."""
        return min(self.risks, key=lambda subset: (self.risks[subset], len(subset), sorted(subset)))

    @property
    def full_set(self) -> frozenset[str]:
        """The smallest subset with the predictor of all stable inputs."""
        return self.graph.representative(self.graph.stable)

    @property
    def gain(self) -> float:
        """By what fraction the best subset lowers the worst-case risk of keeping all stable inputs."""
        full = self.risks[self.full_set]
        return 1 - self.risks[self.best] / full if full > 0 else 0.0

    def report(self) -> Report:
        """Return a report with the ranking and a drawing of the graph."""
        ranked = sorted(self.risks.items(), key=lambda item: (item[1], len(item[0])))
        rows = [[listing(sorted(subset), 9) or "none", len(subset), risk] for subset, risk in ranked[:_SHOWN]]
        kept = listing(sorted(self.best), 9) or "no stable input"
        certificate = (
            "The graph shows that keeping all stable inputs is optimal."
            if self.graph.full_set_optimal
            else "The graph does not decide it: an effect of a changing variable is also an effect of the target."
        )
        figure: Figure = graph_figure(self.graph, self.best)
        return Report(
            "Which stable inputs to keep",
            f"Keep {kept} and all changing inputs: worst-case risk {number(self.risks[self.best])}, "
            f"{100 * self.gain:.1f} % below that of all stable inputs.",
            blocks=[
                figure,
                Table("Classes of subsets, best first", ["Stable inputs", "Number", "Worst-case risk"], rows),
                Text(
                    f"- {certificate}\n- {self.evaluations} of {self.subsets} subsets were evaluated: the others have "
                    "the predictor of one of these.\n- **Not checked:** whether the graph is right."
                ),
            ],
        )


def minimax_search(graph: StableGraph, risk: Callable[[frozenset[str]], float]) -> MinimaxResult:
    """Return the worst-case risk of one subset of each class, and with it the best subset.

    Args:
        graph: the graph.
        risk: worst-case risk of a subset of stable inputs, such as ``TabularModel(...).worst_case_risk``.

    References:
        M. Liu et al. (2023), arXiv:2107.01876.
    """
    classes = graph.classes()
    risks = {group.representative: risk(group.representative) for group in classes}
    return MinimaxResult(graph, risks, len(risks), 2 ** len(graph.stable))
