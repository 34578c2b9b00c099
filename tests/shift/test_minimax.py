"""Stable inputs under changing mechanisms: graphs, equivalence classes, exact risks, and the search."""

from __future__ import annotations

from itertools import chain, combinations

import networkx as nx
import numpy as np
import pandas as pd
import pytest

from poise.shift import MinimaxSelector, StableGraph, TabularModel, minimax_search

EIGHT = [
    ("Y", "X1"), ("X9", "X1"), ("X6", "X1"), ("X5", "X1"), ("X6", "X5"), ("X1", "X3"), ("X3", "X2"), ("X8", "X2"),
    ("X8", "X7"), ("X2", "X4"), ("X7", "X4"), ("X8", "X4"), ("Y", "X9"),
]  # fmt: skip


def eight():
    return StableGraph(EIGHT, "Y", ["X9"])


def plain(edges):
    return StableGraph(edges, "Y", [])


def random_tables(graph, random, states=2):
    tables = {}
    for name in (n for n in graph.order if n not in graph.mutable):
        p = random.beta(0.5, 0.5, (states,) * len(graph.parents(name)))
        tables[name] = np.stack([p, 1 - p], -1)
    return TabularModel(graph, tables, dict.fromkeys(graph.mutable, states))


def subsets(names):
    return map(frozenset, chain.from_iterable(combinations(names, r) for r in range(len(names) + 1)))


def test_the_graph_of_the_paper_has_45_classes():
    classes = eight().classes()
    assert len(classes) == 45
    assert sum(len(group.members) for group in classes) == 256
    assert all(min(group.members, key=len) == group.representative for group in classes)


@pytest.mark.parametrize(
    ("edges", "count"),
    [
        ([("Y", "A"), ("A", "B"), ("B", "C"), ("C", "D")], 5),  # a chain of 4
        ([("Y", name) for name in "ABCDE"], 32),  # a star of 5
        ([("Y", "X1"), ("X1", "X2"), ("Y", "X3"), ("X3", "X4"), ("X1", "X3")], 9),
        ([("X1", "Y"), ("Y", "X2"), ("X3", "X2")], 6),
    ],
)
def test_numbers_of_classes(edges, count):
    assert len(plain(edges).classes()) == count


@pytest.mark.parametrize("seed", range(5))
def test_separation_is_that_of_networkx(seed):
    random = np.random.default_rng(seed)
    names = ["Y", *"ABCDE"]
    order = list(random.permutation(names))
    edges = [(a, b) for i, a in enumerate(order) for b in order[i + 1 :] if random.random() < 0.4]
    graph = StableGraph(edges, "Y", [], nodes=names)
    oracle = nx.DiGraph(edges)
    oracle.add_nodes_from(names)
    for group in graph.classes():
        for member in group.members:
            rest = set(member) - group.representative
            assert not rest or nx.is_d_separator(oracle, {"Y"}, rest, set(group.representative))
        for node in group.representative:
            others = set(group.representative) - {node}
            assert not nx.is_d_separator(oracle, {"Y"}, {node}, others)


def test_the_pieces_of_the_papers_graph():
    edges = [*EIGHT, ("X5", "X10"), ("X3", "X10"), ("X8", "X10")]
    graph = StableGraph(nx.DiGraph(edges), "Y", ["X9", "X10"])
    assert graph.x_m0 == {"X9"}
    assert graph.k == {"X1", "X2", "X3", "X4", "X10"}
    assert graph.x_do == {"X9", "X2", "X3", "X4", "X10"}
    assert graph.regenerated == ("X1",)
    assert not graph.full_set_optimal
    moved = [edge for edge in EIGHT if edge != ("X9", "X1")] + [("X9", "X2")]
    assert StableGraph(moved, "Y", ["X9"]).full_set_optimal


def closed_form():
    graph = StableGraph([("Y", "M"), ("Y", "X"), ("M", "X")], "Y", ["M"])
    x = np.zeros((2, 2, 2))  # by Y, M, X
    x[1, 0], x[0, 0], x[:, 1] = [0.75, 0.25], [0.0, 1.0], [0.5, 0.5]
    return TabularModel(graph, {"Y": np.array([0.2, 0.8]), "X": x}, {"M": 2})


def test_dropping_a_stable_input_can_lower_the_worst_case():
    model = closed_form()
    with_x = model.risks({"X"})
    expected = {(0, 0): 0.1, (0, 1): 0.082, (1, 0): 0.178, (1, 1): 0.16}
    # A mechanism is J(Y=0), J(Y=1); the card lists J(Y=1) = a, J(Y=0) = b as the worst.
    assert {(j1, j0): risk for (j0, j1), risk in with_x.items()} == pytest.approx(
        {(0, 0): 0.1, (1, 0): 0.082, (0, 1): 0.178, (1, 1): 0.16}
    )
    assert sorted(with_x.values()) == pytest.approx(sorted(expected.values()))
    assert list(model.risks(()).values()) == pytest.approx([0.16] * 4)
    found = minimax_search(model.graph, model.worst_case_risk)
    assert found.best == frozenset()
    assert found.gain == pytest.approx(1 - 0.16 / 0.178)
    assert (found.evaluations, found.subsets) == (2, 2)


@pytest.mark.parametrize("seed", range(3))
def test_one_subset_of_each_class_finds_what_all_subsets_find(seed):
    graph = eight()
    model = random_tables(graph, np.random.default_rng(seed))
    risks = {subset: model.worst_case_risk(subset) for subset in subsets(graph.stable)}
    for group in graph.classes():
        values = [risks[member] for member in group.members]
        assert max(values) - min(values) < 1e-12
    found = minimax_search(graph, model.worst_case_risk)
    assert found.risks[found.best] == pytest.approx(min(risks.values()), abs=1e-12)
    assert (found.evaluations, found.subsets) == (45, 256)


def test_no_observed_environment_is_worse_than_the_worst_case():
    graph, random = eight(), np.random.default_rng(0)
    model = random_tables(graph, random)
    for subset in ((), ("X1",), graph.stable):
        worst = model.worst_case_risk(subset)
        for _ in range(10):
            p = random.random(2)
            assert model.risk_under(subset, {"X9": np.stack([p, 1 - p], -1)}) <= worst + 1e-12


def test_where_the_graph_says_so_all_stable_inputs_are_best():
    moved = [edge for edge in EIGHT if edge != ("X9", "X1")] + [("X9", "X2")]
    graph = StableGraph(moved, "Y", ["X9"])
    for seed in range(5):
        found = minimax_search(graph, random_tables(graph, np.random.default_rng(seed)).worst_case_risk)
        assert found.gain == pytest.approx(0, abs=1e-12)


def test_an_unconnected_node_changes_no_risk():
    model = closed_form()
    graph = StableGraph(model.graph.edges, "Y", ["M"], nodes=["Z"])
    larger = TabularModel(graph, {**model._tables, "Z": np.array([0.3, 0.7])}, {"M": 2})
    for subset in ((), ("X",)):
        assert larger.worst_case_risk(subset) == pytest.approx(model.worst_case_risk(subset))
        assert larger.worst_case_risk((*subset, "Z")) == pytest.approx(model.worst_case_risk(subset))


def test_fourteen_stable_inputs_take_seconds():
    random = np.random.default_rng(0)
    names = [f"X{i}" for i in range(14)]
    order = ["Y", *names]
    edges = [(a, b) for i, a in enumerate(order) for b in order[i + 1 :] if random.random() < 0.2]
    assert sum(len(group.members) for group in StableGraph(edges, "Y", [], nodes=names).classes()) == 2**14


def linear_world(n, seed, strength):
    """X = Y + M + noise, with a changing mechanism M = strength * Y + noise."""
    random = np.random.default_rng(seed)
    y = random.normal(size=n)
    m = strength * y + random.normal(size=n)
    return pd.DataFrame({"M": m, "X": y + m + 0.5 * random.normal(size=n)}), y


def test_a_learned_predictor_does_not_use_the_changing_mechanism():
    graph = StableGraph([("Y", "M"), ("Y", "X"), ("M", "X")], "Y", ["M"])
    rows = [linear_world(300, seed, strength) for seed, strength in enumerate((2.0, 1.0, 1.5))]
    x, y = pd.concat([x for x, _ in rows]), np.concatenate([y for _, y in rows])
    selector = MinimaxSelector(graph).fit(x, y)
    assert selector.support_ == {"X"}  # additive: its risk is the same for every mechanism
    new, truth = linear_world(1000, 9, -2.0)
    error = np.mean((selector.predict(new) - truth) ** 2)
    exact = 0.25 / 1.25  # of E[Y | X - M], with Var(Y) = 1 and noise 0.25
    assert exact < error < 2 * exact
    assert np.mean((selector.predict_all(new)[frozenset()] - truth) ** 2) > 0.7
    same = MinimaxSelector(graph).fit(x, y)
    assert same.worst_case_risk_ == selector.worst_case_risk_


def test_the_report_has_the_ranking_and_a_drawing():
    report = minimax_search(eight(), random_tables(eight(), np.random.default_rng(0)).worst_case_risk).report()
    assert "45 of 256 subsets were evaluated" in report.blocks[-1].markdown
    assert "Y to X1" in report.blocks[0].alt
    assert "<html" in report.to_html()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: StableGraph([("Y", "A"), ("A", "Y")], "Y", []), "edges must have no cycle, got one among A, Y"),
        (lambda: StableGraph([("Y", "A")], "Y", ["Y"]), "mutable must not hold the target"),
        (lambda: StableGraph([("Y", "A")], "Y", ["B"]), r"mutable must be in the graph, got \['B'\]"),
        (lambda: eight().representative(["X9"]), r"stable inputs only, got \['X9'\]"),
        (lambda: closed_form().worst_case_risk(["Y"]), "stable inputs only"),
        (lambda: eight().classes(max_classes=100), r"2\^8 subsets of stable inputs, more than max_classes=100"),
        (lambda: TabularModel(eight(), {}, {}), "must be given for"),
        (lambda: TabularModel(plain([("Y", "A")]), {"Y": np.ones(2) / 2, "A": np.ones(2)}, {}), "must be of shape"),
        (lambda: MinimaxSelector(eight()).fit(pd.DataFrame({"X1": [1.0]}), [1.0]), "X must have the columns"),
        (
            lambda: MinimaxSelector(plain([("Y", "A")])).fit(pd.DataFrame({"A": [np.nan]}), [1.0]),
            r"X\['A'\] must be finite",
        ),
        (
            lambda: MinimaxSelector(plain([("Y", "A")])).fit(pd.DataFrame({"A": [0.0]}), [1.0]),
            "at least 20 rows, got 1",
        ),
        (lambda: MinimaxSelector(plain([("Y", "A")])).fit(pd.DataFrame({"A": [0.0]}), [1.0, 2]), "y must be finite"),
        (lambda: MinimaxSelector(eight(), restarts=0).fit(None, None), "restarts must be at least 1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_too_many_mechanisms_name_the_variable():
    graph = StableGraph([(f"A{i}", "M") for i in range(5)] + [("Y", "M")], "Y", ["M"])
    tables = {name: np.array([0.5, 0.5]) for name in graph.order if name != "M"}
    with pytest.raises(ValueError, match="'M' has"):
        TabularModel(graph, tables, {"M": 2}).risks(())
