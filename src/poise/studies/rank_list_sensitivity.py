"""Study of "Rank List Sensitivity of Recommender Systems to Interaction Perturbations".

A recurrent recommender on MovieLens is trained again after one interaction of one user was deleted: a random one, the
one that reaches most later interactions, the earliest and the latest; beside it the same seed without any change, and
another seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from poise.recsys import InteractionGraph, RankListSensitivity, next_item_accuracy, rank_list_sensitivity
from poise.report import Table, Text, bar_chart
from poise.studies.kit import Budget, ClaimResult, Measured, Paper, Presentation, Progress, Study, claim
from poise.studies.kit.grid import run_grid
from poise.studies.kit.next_item import USERS, NextItemTask, movielens_task, scores_of, trained
from poise.studies.kit.rules import above, at_least, at_most, below, equal_to
from poise.studies.kit.tables import seed_table
from poise.studies.kit.words import listed

K, P = 10, 0.9
RANDOM = ("random 1", "random 2", "random 3")
SAME, OTHER, CASCADE, LATEST = "same seed", "other seed", "most reaching", "latest"
ARMS = (SAME, OTHER, *RANDOM, CASCADE, LATEST)
GROUP = 0.2  # fraction of the users in the groups of low and high accuracy


@dataclass(frozen=True, slots=True)
class Plan:
    """What a budget buys."""

    epochs: int = 20
    users: int = USERS
    n_jobs: int = -1


PLANS: dict[Budget, Plan] = {"tiny": Plan(2, 20, n_jobs=1), "default": Plan(), "full": Plan(epochs=50)}


def deleted_events(arm: str, task: NextItemTask, seed: int) -> list[int]:
    """Return the positions in the training log that an arm deletes."""
    allowed = np.flatnonzero(np.bincount(task.train.user)[task.train.user] > 2)
    if arm in RANDOM:
        return [int(np.random.default_rng([seed, RANDOM.index(arm)]).choice(allowed))]
    if arm == CASCADE:
        return [most_reaching(task)]
    return [int(allowed[-1])] if arm == LATEST else []


def most_reaching(task: NextItemTask) -> int:
    """Return the event with the most descendants; the earliest of equal ones."""
    return int(InteractionGraph.from_log(task.train).cascade_scores().argmax())


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """One retraining compared with the base of its seed.

    Args:
        similarity: of the lists at every test event.
        recall: of the retrained network, at every test event.
        base_recall: of the base.
        base_reciprocal_rank: of the base.
    """

    similarity: RankListSensitivity
    recall: Float[np.ndarray, " events"]
    base_recall: Float[np.ndarray, " events"]
    base_reciprocal_rank: Float[np.ndarray, " events"]

    def groups(self, user: NDArray[np.int64]) -> tuple[float, float]:
        """Return the mean similarity for the fifths of users with the lowest and the highest base accuracy."""
        count = np.bincount(user)
        accuracy = np.bincount(user, self.base_reciprocal_rank) / np.maximum(1, count)
        kept = np.bincount(user, self.similarity.jaccard) / np.maximum(1, count)
        order = np.flatnonzero(count)[np.argsort(accuracy[count > 0], kind="stable")]
        size = max(1, int(GROUP * len(order)))
        return float(kept[order[:size]].mean()), float(kept[order[-size:]].mean())


# --- the experiment ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Results:
    """Outcomes by arm, one a seed."""

    plan: Plan
    task: NextItemTask
    arms: Mapping[str, Sequence[Outcome]]
    most_reaching: int

    def jaccard(self, arm: str) -> NDArray[np.float64]:
        """Return the mean similarity of the first places by seed."""
        return np.array([outcome.similarity.jaccard.mean() for outcome in self.arms[arm]])

    @property
    def random(self) -> NDArray[np.float64]:
        """The same, mean over the random deletions."""
        return np.mean([self.jaccard(arm) for arm in RANDOM], axis=0)

    def gap(self) -> NDArray[np.float64]:
        """Return by seed how much less the lists of users with low accuracy keep, mean over all deletions."""
        both = [[o.groups(self.task.test_user) for o in self.arms[arm]] for arm in (*RANDOM, CASCADE)]
        low, high = np.moveaxis(np.array(both), -1, 0).mean(1)
        return high - low


def experiment(budget: Budget, seeds: Sequence[int], progress: Progress) -> Results:
    """Train a base and one network for each arm, for each seed."""
    plan = PLANS[budget]
    task = movielens_task(plan.users)

    def scores(arm: str, seed: int) -> Float[np.ndarray, "events items"]:
        own = movielens_task(plan.users)
        kept = np.delete(np.arange(len(own.train)), deleted_events(arm, own, seed))
        return scores_of(trained(own.train.take(kept), plan.epochs, seed + 50 * (arm == OTHER)), own)

    found = run_grid(scores, ("base", *ARMS), seeds, progress, plan.n_jobs)
    arms = {arm: [_compared(*pair, task) for pair in zip(found["base"], found[arm], strict=True)] for arm in ARMS}
    return Results(plan, task, arms, most_reaching(task))


def _compared(base: NDArray[np.float64], other: NDArray[np.float64], task: NextItemTask) -> Outcome:
    before, after = (next_item_accuracy(scores, task.answers, K) for scores in (base, other))
    return Outcome(rank_list_sensitivity(base, other, K, P), after.recall, before.recall, before.reciprocal_rank)


# --- the claims --------------------------------------------------------------------------------------------------


@claim(
    "control",
    "Training is deterministic: the same seed and data give the same lists.",
    paper="not reported",
    protocol="Smallest top-10 Jaccard similarity of any list of any seed. No seeds enter the judgement.",
    reproduced=equal_to("smallest", 1),
    without_seeds="an identity, which holds for every seed: the smallest similarity of all is judged.",
)
def control(results: Results) -> Measured:
    smallest = min(outcome.similarity.jaccard.min() for outcome in results.arms[SAME])
    return Measured(f"the smallest similarity of a list is {smallest:g}", {"smallest": smallest})


@claim(
    "one-interaction",
    "Deleting one random interaction changes the lists of all users.",
    paper="RBO and Jaccard well below 1 on four logs",
    protocol="Mean top-10 Jaccard similarity to the base over all test events, mean of three random deletions a seed.",
    reproduced=at_most("jaccard", 0.95),
    refuted=at_least("jaccard", 0.99),
    over_seeds=["jaccard"],
)
def one_interaction(results: Results) -> Measured:
    kept, other = results.random, results.jaccard(OTHER)
    words = (
        f"after one deletion among {len(results.task.train):,} interactions the first ten places keep "
        f"{kept.mean():.3f} (Jaccard; by seed {listed(kept, '.3f')}); another seed keeps {other.mean():.3f}"
    )
    return Measured(words, {"jaccard": kept.mean()}, {"jaccard": kept})


@claim(
    "cascade",
    "The interaction that reaches most later ones changes the lists more than a random one.",
    paper="CASPER below random deletion on all logs and models",
    protocol="Gap: similarity after a random deletion (mean of three) less that after deleting the interaction with "
    "the most descendants.",
    reproduced=at_least("gap", 0.03),
    refuted=at_most("gap", 0),
    over_seeds=["gap"],
)
def cascade(results: Results) -> Measured:
    gap = results.random - results.jaccard(CASCADE)
    words = (
        f"the most reaching interaction, number {results.most_reaching} in time, keeps "
        f"{results.jaccard(CASCADE).mean():.3f}, random ones {results.random.mean():.3f} "
        f"(gap by seed {listed(gap, '+.3f')})"
    )
    return Measured(words, {"gap": gap.mean()}, {"gap": gap})


@claim(
    "recency",
    "Early interactions change the lists more than late ones.",
    paper="CASPER's choice is early; figure",
    protocol="Gap: similarity after deleting the latest interaction less that after deleting the most reaching one.",
    reproduced=above("gap", 0),
    over_seeds=["gap"],
)
def recency(results: Results) -> Measured:
    gap = results.jaccard(LATEST) - results.jaccard(CASCADE)
    words = f"the latest interaction keeps {results.jaccard(LATEST).mean():.3f} (gap by seed {listed(gap, '+.3f')})"
    return Measured(words, {"gap": gap.mean()}, {"gap": gap})


@claim(
    "unequal",
    "Users whom the recommender serves badly get less stable lists.",
    paper="low-accuracy users are hit harder; figure",
    protocol="Gap: similarity for the fifth of the users with the highest reciprocal rank under the base less that for "
    "the lowest fifth, mean of all random and most reaching deletions.",
    reproduced=above("gap", 0),
    over_seeds=["gap"],
)
def unequal(results: Results) -> Measured:
    gap = results.gap()
    words = f"the lists of badly served users keep {gap.mean():.3f} less (by seed {listed(gap, '+.3f')})"
    return Measured(words, {"gap": gap.mean()}, {"gap": gap})


@claim(
    "accuracy",
    "The accuracy does not show it.",
    paper="MRR and recall hardly change",
    protocol="Largest relative change of recall@10 after a deletion, mean over seeds for each arm.",
    reproduced=below("change", 0.1),
    without_seeds="the largest change of several arms, each a mean over seeds, is judged.",
)
def accuracy(results: Results) -> Measured:
    changes = {}
    for arm in (*RANDOM, CASCADE, LATEST):
        after, before = ([getattr(o, name).mean() for o in results.arms[arm]] for name in ("recall", "base_recall"))
        changes[arm] = abs(np.mean(after) / np.mean(before) - 1) if np.mean(before) else 0.0
    worst = max(changes, key=lambda arm: changes[arm])
    base = np.mean([outcome.base_recall.mean() for outcome in results.arms[SAME]])
    words = f"recall@{K} of {base:.3f} changes by at most {changes[worst]:.1%} ({worst})"
    return Measured(words, {"change": changes[worst]})


# --- the report --------------------------------------------------------------------------------------------------


def present(results: Results, claims: Mapping[str, ClaimResult]) -> Presentation:
    """Put figure, tables and summary together."""
    kept = {arm: results.jaccard(arm) for arm in ARMS}
    picture = bar_chart(
        "What stays of the first ten places",
        {arm: values.mean() for arm, values in kept.items()},
        "Jaccard similarity to the base, mean over test events and seeds",
        {arm: (values.min(), values.max()) for arm, values in kept.items()},
    )
    rows = [[arm, *_means(results.arms[arm])] for arm in ARMS]
    columns = ["change", f"Jaccard@{K}", f"RBO (p = {P:g})", "average overlap", f"recall@{K}"]
    return Presentation(
        f"{claims['one-interaction'].text[0].upper()}{claims['one-interaction'].text[1:]}. "
        f"{claims['cascade'].text[0].upper()}{claims['cascade'].text[1:]}.",
        [
            picture,
            Table("Similarity to the base, mean over seeds", columns, rows, "Bars and rows: all test events."),
            seed_table("By seed", ["change"], {(arm,): values for arm, values in kept.items()}, f"Jaccard@{K}"),
            _notes(results),
        ],
        picture.figure,
    )


def _means(outcomes: Sequence[Outcome]) -> list[float]:
    found = [(o.similarity.jaccard, o.similarity.rbo, o.similarity.average_overlap, o.recall) for o in outcomes]
    return [float(value) for value in np.array(found).mean((0, 2))]


def _notes(results: Results) -> Text:
    log = results.task.train
    return Text(
        f"MovieLens 100k, the first {results.plan.users} users, films with at least five ratings: {len(log):,} "
        f"training events of {len(log.items):,} films, {len(results.task.answers):,} test events. An LSTM of width "
        f"32 with tied output, {results.plan.epochs} epochs of Adam at 0.005. The lists of a test event are of all "
        "films. Average overlap, which the published code computes, is near 1 whatever happens to the first places. "
        "On a log this dense the most reaching interaction is nearly always the earliest.",
        title="How to read it",
    )


STUDY = Study(
    slug="rank-list-sensitivity",
    title="Does one deleted interaction change the recommendations of all users?",
    room="recsys",
    paper=Paper(
        "Rank List Sensitivity of Recommender Systems to Interaction Perturbations", "Oh et al.", 2022, "2201.12686"
    ),
    seeds={"tiny": 2, "default": 4, "full": 8},
    experiment=experiment,
    claims=(control, one_interaction, cascade, recency, unequal, accuracy),
    present=present,
)
