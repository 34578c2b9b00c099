"""Whether keeping fewer stable inputs than all can make a predictor safer in environments that were never seen.

Part one is exact: random binary mechanisms on the graph of the paper, worst cases over all mechanisms of the variable
that changes. Part two learns everything from rows of some environments and tests it in others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from scipy.stats import spearmanr

from poise.report import Figure
from poise.shift import MinimaxSelector, StableGraph, TabularModel, minimax_search
from poise.shift.minimax.drawing import graph_figure
from poise.studies.kit import Budget, ClaimResult, Measured, Paper, Presentation, Progress, Study, claim
from poise.studies.kit.grid import part_of, run_each
from poise.studies.kit.rules import above, at_least, at_most, below, equal_to
from poise.studies.kit.tables import record_table

EDGES = (
    ("Y", "X9"), ("Y", "X1"), ("X9", "X1"), ("X6", "X1"), ("X5", "X1"), ("X6", "X5"), ("X1", "X3"), ("X3", "X2"),
    ("X8", "X2"), ("X8", "X7"), ("X2", "X4"), ("X7", "X4"), ("X8", "X4"),
)  # fmt: skip
GRAPH = StableGraph(EDGES, "Y", ["X9"])
MOVED = StableGraph([edge for edge in EDGES if edge != ("X9", "X1")] + [("X9", "X2")], "Y", ["X9"])
"""The changing variable is no cause of an effect of the target any more."""
TINY_GAIN = 1e-9
ENVIRONMENTS, TRAINED, ROWS, NOISE = 20, 10, 400, 0.5


@dataclass(frozen=True, slots=True)
class Plan:
    """Random mechanisms for each seed, those of which all subsets are evaluated, and seeds and rows of part two."""

    models: int
    complete: int
    learned: int
    rows: int
    adversary_steps: int


PLANS: Mapping[Budget, Plan] = {
    "tiny": Plan(2, 1, 2, 60, 5),
    "default": Plan(40, 2, 4, 400, 100),
    "full": Plan(200, 10, 10, 1_000, 400),
}


# --- part one: exact ------------------------------------------------------------------------------------------------


def random_model(graph: StableGraph, random: np.random.Generator) -> TabularModel:
    """Draw binary mechanisms, every probability from Beta(1/2, 1/2)."""
    tables = {}
    for name in (name for name in graph.order if name not in graph.mutable):
        p = random.beta(0.5, 0.5, (2,) * len(graph.parents(name)))
        tables[name] = np.stack([p, 1 - p], -1)
    return TabularModel(graph, tables, {"X9": 2})


@dataclass(frozen=True, slots=True)
class Exact:
    """What exact worst cases show for one seed.

    Args:
        gains: by what fraction the best subset lowers the worst case of all stable inputs, by model.
        moved_gains: the same on the other graph.
        spread: largest difference of risks within a class.
        missed: largest excess of the best representative over the best of all subsets.
    """

    gains: np.ndarray
    moved_gains: np.ndarray
    spread: float
    missed: float


def exact(plan: Plan, seed: int) -> Exact:
    """Search among the classes of random models, and among all subsets of a few of them."""
    random = np.random.default_rng(seed)
    models = [random_model(GRAPH, random) for _ in range(plan.models)]
    found = [minimax_search(GRAPH, model.worst_case_risk) for model in models]
    moved = [minimax_search(MOVED, random_model(MOVED, random).worst_case_risk).gain for _ in range(plan.models)]
    spread, missed = 0.0, 0.0
    for model, result in zip(models[: plan.complete], found, strict=False):
        groups = [[model.worst_case_risk(member) for member in group.members] for group in GRAPH.classes()]
        spread = max(spread, *(max(group) - min(group) for group in groups))
        missed = max(missed, result.risks[result.best] - min(map(min, groups)))
    return Exact(np.array([result.gain for result in found]), np.array(moved), spread, missed)


# --- part two: learned ----------------------------------------------------------------------------------------------


def environment(strength: float, rows: int, random: np.random.Generator) -> pd.DataFrame:
    """Draw rows; only the mechanism of X9 depends on the environment."""
    e = {name: NOISE * random.normal(size=rows) for name in GRAPH.order}
    y, x6, x8 = (random.normal(size=rows) for _ in range(3))
    x9 = strength * np.tanh(1.9 * y) + e["X9"]
    x5, x7 = np.tanh(0.84 * x6) + e["X5"], -1.5 * x8 + e["X7"]
    x1 = 2 * np.tanh(0.63 * y - 0.58 * x9 + 1.5 * x6 + 1.1 * x5) + e["X1"]
    x3 = np.tanh(-0.95 * x1) + e["X3"]
    x2 = np.tanh(1.5 * x3 - 0.64 * x8) + e["X2"]
    x4 = np.tanh(1.4 * x2 + x7 + 0.7 * x8) + e["X4"]
    columns = {"X1": x1, "X2": x2, "X3": x3, "X4": x4, "X5": x5, "X6": x6, "X7": x7, "X8": x8, "X9": x9, "Y": y}
    return pd.DataFrame(columns)


@dataclass(frozen=True, slots=True)
class Learned:
    """Estimated worst case and largest error in new environments, by class of subsets; and what was chosen."""

    estimated: np.ndarray
    tested: np.ndarray
    chosen: float
    full: float


def learned(plan: Plan, seed: int) -> Learned:
    """Learn in half of the environments and test in the others."""
    random = np.random.default_rng(seed)
    strengths = np.linspace(-2, 2, ENVIRONMENTS)
    tables = [environment(strength, ROWS, random) for strength in strengths]
    order = random.permutation(ENVIRONMENTS)
    train = pd.concat([tables[i] for i in order[:TRAINED]])
    selector = MinimaxSelector(GRAPH, plan.adversary_steps, max_rows=plan.rows, random_state=seed)
    selector.fit(train, train["Y"])
    worst: dict[frozenset[str], float] = {}
    for i in order[TRAINED:]:
        for subset, predicted in selector.predict_all(tables[i]).items():
            error = float(np.mean((predicted - tables[i]["Y"].to_numpy()) ** 2))
            worst[subset] = max(worst.get(subset, 0.0), error)
    estimated = np.array([selector.worst_case_risk_[subset] for subset in worst])
    return Learned(
        estimated, np.array(list(worst.values())), worst[selector.support_], worst[selector.result_.full_set]
    )


@dataclass(frozen=True, slots=True)
class Results:
    """Both parts, one entry a seed, and the sizes of the classes."""

    exact: Sequence[Exact]
    learned: Sequence[Learned]
    sizes: Sequence[int]


def experiment(budget: Budget, seeds: Sequence[int], progress: Progress) -> Results:
    """Run both parts."""
    plan = PLANS[budget]
    one = run_each(lambda seed: exact(plan, seed), seeds, part_of(progress, 0.0, 0.5), name=str)
    few = seeds[: plan.learned]
    two = run_each(lambda seed: learned(plan, seed), few, part_of(progress, 0.5, 1.0), name=str)
    sizes = [len(group.members) for group in GRAPH.classes()]
    return Results([one[seed] for seed in seeds], [two[seed] for seed in few], sizes)


# --- the claims -----------------------------------------------------------------------------------------------------


@claim(
    "classes",
    "45 classes cover all 256 subsets of the paper's graph",
    paper="45 and 256",
    protocol="Number of classes, and of their members together.",
    reproduced=equal_to("classes", 45) & equal_to("subsets", 256),
    without_seeds="nothing is drawn.",
)
def classes(results: Results) -> Measured:
    numbers = {"classes": len(results.sizes), "subsets": sum(results.sizes)}
    return Measured(f"{numbers['classes']} classes, {numbers['subsets']} subsets", numbers)


@claim(
    "equivalence",
    "Subsets of a class have the same worst case, so that one of each is enough",
    paper="theorem",
    protocol="Largest difference within a class, and by how much the best representative misses the best subset.",
    reproduced=at_most("spread", 1e-12) & at_most("missed", 1e-12),
    without_seeds="an identity, which holds for every seed up to rounding; the largest difference of all is judged.",
)
def equivalence(results: Results) -> Measured:
    numbers = {"spread": max(r.spread for r in results.exact), "missed": max(r.missed for r in results.exact)}
    return Measured(f"difference {numbers['spread']:.1g}, missed {numbers['missed']:.1g}", numbers)


@claim(
    "full-set",
    "Keeping all stable inputs is not always safest",
    paper="a smaller subset can have a strictly lower worst case",
    protocol="Fraction of random mechanisms for which a smaller subset is strictly better.",
    reproduced=at_least("beaten", 0.2, "fraction"),
    refuted=at_most("beaten", 0, "fraction"),
    over_seeds=("beaten",),
)
def full_set(results: Results) -> Measured:
    beaten = np.array([np.mean(r.gains > TINY_GAIN) for r in results.exact])
    gains = np.concatenate([r.gains for r in results.exact])
    won = gains[gains > TINY_GAIN]
    middle = f"median gain {np.median(won):.1%}, largest {won.max():.1%}" if len(won) else "no gain"
    words = f"beaten in {np.mean(gains > TINY_GAIN):.0%} of {len(gains)} models; {middle}"
    return Measured(words, {"beaten": beaten.mean()}, {"beaten": beaten})


@claim(
    "condition",
    "Where no effect of a changing effect of the target is an effect of the target, all stable inputs are safest",
    paper="theorem",
    protocol="Number of random models, the edge X9 to X1 moved to X2, in which a smaller subset is better.",
    reproduced=equal_to("counterexamples", 0),
    without_seeds="a theorem: one counterexample would refute it.",
)
def condition(results: Results) -> Measured:
    gains = np.concatenate([r.moved_gains for r in results.exact])
    count = int(np.sum(gains > TINY_GAIN))
    return Measured(f"{count} counterexamples among {len(gains)} models", {"counterexamples": count})


@claim(
    "ranking",
    "Learned from rows, the estimated worst case ranks subsets as their largest error in new environments does",
    paper="figure only",
    protocol="Rank correlation over the 45 classes.",
    reproduced=above("correlation", 0.4),
    refuted=below("correlation", 0),
    over_seeds=("correlation",),
)
def ranking(results: Results) -> Measured:
    values = np.array([spearmanr(r.estimated, r.tested).statistic for r in results.learned])
    words = f"rank correlation {values.mean():.2f} ({values.min():.2f} to {values.max():.2f})"
    return Measured(words, {"correlation": values.mean()}, {"correlation": values})


@claim(
    "choice",
    "The chosen subset has a smaller largest error in new environments than all stable inputs",
    paper="best of the compared methods",
    protocol="Largest mean squared error over ten new environments, chosen subset by all stable inputs.",
    reproduced=below("ratio", 1),
    refuted=above("ratio", 1),
    over_seeds=("ratio",),
)
def choice(results: Results) -> Measured:
    values = np.array([r.chosen / r.full for r in results.learned])
    words = f"ratio {values.mean():.3f} ({values.min():.3f} to {values.max():.3f})"
    return Measured(words, {"ratio": values.mean()}, {"ratio": values})


def present(results: Results, claims: Mapping[str, ClaimResult]) -> Presentation:
    """Put figures, table and summary together."""
    summary = (
        f"On the paper's graph all stable inputs are {claims['full-set'].text}. Where the graph forbids it: "
        f"{claims['condition'].text}. Learned from rows: {claims['ranking'].text}; {claims['choice'].text}."
    )
    points = [
        go.Scatter(x=r.estimated, y=r.tested, mode="markers", name=f"seed {i}") for i, r in enumerate(results.learned)
    ]
    picture = go.Figure(points).update_layout(xaxis_title="estimated worst case", yaxis_title="largest error, new")
    alt = f"Estimated worst case and largest error in new environments of 45 classes; {claims['ranking'].text}."
    rows = [
        {
            "seed": i,
            "models": len(r.gains),
            "all stable inputs beaten": float(np.mean(r.gains > TINY_GAIN)),
            "largest gain": float(r.gains.max()),
            "beaten where the graph forbids it": int(np.sum(r.moved_gains > TINY_GAIN)),
        }
        for i, r in enumerate(results.exact)
    ]
    figure = Figure("Estimated and realised worst cases", picture, alt)
    return Presentation(summary, [graph_figure(GRAPH), figure, record_table("Exact worst cases", rows)], picture)


STUDY = Study(
    slug="causal-minimax",
    title="Is a predictor safer in new environments if it drops some of its stable inputs?",
    room="shift",
    paper=Paper(
        "Which invariance should we transfer? A causal minimax learning approach", "Liu et al.", 2023, "2107.01876"
    ),
    seeds={"tiny": 2, "default": 6, "full": 10},
    experiment=experiment,
    claims=(classes, equivalence, full_set, condition, ranking, choice),
    present=present,
)
