"""Study of "FINEST: Stabilizing Recommendations by Rank-Preserving Fine-Tuning".

A recurrent recommender on MovieLens is trained, then fine-tuned in six ways; then the same from perturbed data with
the same seed. What is compared are the lists of both, and the accuracy.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from poise.recsys import (
    EventLog,
    Finest,
    InteractionGraph,
    PerturbationSampler,
    ReferenceRanks,
    SequenceWindows,
    next_item_accuracy,
    rank_list_sensitivity,
)
from poise.recsys.fit_recommender import train_epoch
from poise.report import Table, Text, bar_chart
from poise.studies.kit import Budget, ClaimResult, Measured, Paper, Presentation, Progress, Study, claim
from poise.studies.kit.claims import Claim
from poise.studies.kit.grid import run_each
from poise.studies.kit.next_item import LENGTH, LSTMRecommender, NextItemTask, movielens_task, scores_of, trained
from poise.studies.kit.one_thread import one_thread
from poise.studies.kit.rules import above, at_least, at_most, below
from poise.studies.kit.words import listed

K, P = 10, 0.9
PLAIN, FINEST, NO_RANKS, DISTILLED, AVERAGED, WARM = (
    "plain",
    "FINEST",
    "perturbed data only",
    "distillation",
    "weight average",
    "warm start",
)
METHODS = (PLAIN, FINEST, NO_RANKS, DISTILLED, AVERAGED, WARM)
RANDOM, CASCADE, REPLACED = "random deletion", "cascade deletion", "0.1 % replaced"
CHANGES = (RANDOM, CASCADE, REPLACED)
BASE = "no change"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a budget buys."""

    epochs: int = 20
    fine_epochs: int = 6
    lr: float = 1e-3
    kept: int = 100
    users: int = 100
    n_jobs: int = -1


PLANS: dict[Budget, Plan] = {
    "tiny": Plan(2, 1, kept=20, users=20, n_jobs=1),
    "default": Plan(),
    "full": Plan(50, 50, users=150),
}


def changed(log: EventLog, change: str, seed: int) -> EventLog:
    """Return the log under a change; simulated events have no row."""
    if change == BASE:
        return log
    if change == REPLACED:
        return PerturbationSampler(1e-3, ("replace",), "random", seed).sample(log, 0)
    allowed = np.flatnonzero(np.bincount(log.user)[log.user] > 2)
    chosen = int(np.random.default_rng(seed).choice(allowed))
    if change == CASCADE:
        chosen = int(InteractionGraph.from_log(log).cascade_scores().argmax())
    return log.take(np.delete(np.arange(len(log)), chosen))


# --- the ways to go on from a trained model ----------------------------------------------------------------------


def fine_tuned(
    method: str, model: LSTMRecommender, log: EventLog, references: ReferenceRanks, served: LSTMRecommender, plan: Plan,
    seed: int,
) -> nn.Module:  # fmt: skip
    """Return the model after the fine-tuning of one method; the model itself stays.

    Args:
        method: one of ``METHODS``.
        model: trained on ``log``.
        log: the data, changed or not.
        references: lists of the model trained on the unchanged data.
        served: that model.
        plan: the budget.
        seed: of batches and perturbed copies.
    """
    model = copy.deepcopy(served if method == WARM else model)
    finest = Finest(references, epochs=plan.fine_epochs, lr=plan.lr, length=LENGTH)
    finest = replace(finest, sampler=PerturbationSampler(seed=seed))
    with one_thread():
        if method in (FINEST, NO_RANKS):
            replace(finest, weight=1.0 if method == FINEST else 0.0).fit(model, log, seed)
            return model
        if method == DISTILLED:
            _train_on(model, log, plan, seed, _distillation(served))
            return model
        averages = _train_on(model, log, plan, seed)
        return averages if method == AVERAGED else model


def _train_on(
    model: LSTMRecommender, log: EventLog, plan: Plan, seed: int, extra: Callable[..., Tensor] | None = None
) -> nn.Module:
    """Train on; return the average of the weights after the last epochs, at most five."""
    windows, optimizer = SequenceWindows.of(log, LENGTH), torch.optim.Adam(model.parameters(), plan.lr)
    average = torch.optim.swa_utils.AveragedModel(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for epoch in range(plan.fine_epochs):
            if extra is None:
                train_epoch(model, optimizer, windows)
            else:
                _distil_epoch(model, optimizer, windows, extra)
            if epoch >= plan.fine_epochs - 5:
                average.update_parameters(model)
    return average


def _distillation(served: LSTMRecommender) -> Callable[..., Tensor]:
    """Return the divergence from the scores of the model that is served, mean over positions."""
    served.eval()

    def loss(scores: Float[Tensor, "batch time items"], items: Int[Tensor, "batch time"]) -> Tensor:
        with torch.no_grad():
            old = served(items).log_softmax(-1)
        there = items >= 0
        return F.kl_div(scores[there].log_softmax(-1), old[there], reduction="batchmean", log_target=True)

    return loss


def _distil_epoch(
    model: LSTMRecommender, optimizer: torch.optim.Optimizer, windows: SequenceWindows, loss: Callable[..., Tensor]
) -> None:
    for index in torch.randperm(len(windows.items)).split(32):
        items, targets = windows.items[index], windows.targets[index]
        scores = model(items)
        total = F.cross_entropy(scores.flatten(0, 1), targets.flatten(), ignore_index=-1) + loss(scores, items)
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()


# --- the experiment ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """One method under one change: similarity to its own lists without the change, and its accuracy.

    Args:
        jaccard: mean top-10 Jaccard similarity.
        rbo: mean extrapolated rank-biased overlap.
        recall: at 10, of the model trained on the changed data.
        reciprocal_rank: mean of the same model.
    """

    jaccard: float
    rbo: float
    recall: float
    reciprocal_rank: float


@dataclass(frozen=True, slots=True, eq=False)
class Results:
    """Outcomes by method and change, one a seed."""

    plan: Plan
    task: NextItemTask
    outcomes: Mapping[tuple[str, str], Sequence[Outcome]]

    def values(self, method: str, change: str, name: str) -> NDArray[np.float64]:
        """Return one figure by seed."""
        return np.array([getattr(outcome, name) for outcome in self.outcomes[method, change]])

    def mean(self, method: str, name: str) -> NDArray[np.float64]:
        """Return one figure by seed, mean over the changes."""
        return np.mean([self.values(method, change, name) for change in CHANGES], axis=0)


def one_seed(plan: Plan, seed: int) -> dict[tuple[str, str], Outcome]:
    """Train without and with each change, go on by each method, and compare."""
    task = movielens_task(plan.users)
    served = trained(task.train, plan.epochs, seed)
    references = ReferenceRanks.from_model(served, task.train, plan.kept, LENGTH)
    base: dict[str, NDArray[np.float64]] = {}
    found = {}
    for change in (BASE, *CHANGES):
        log = changed(task.train, change, seed)
        model = served if change == BASE else trained(log, plan.epochs, seed)
        for method in METHODS:
            scores = scores_of(fine_tuned(method, model, log, references, served, plan, seed), task)
            if change == BASE:
                base[method] = scores
            else:
                found[method, change] = _outcome(base[method], scores, task)
    return found


def _outcome(before: NDArray[np.float64], after: NDArray[np.float64], task: NextItemTask) -> Outcome:
    alike, accuracy = rank_list_sensitivity(before, after, K, P), next_item_accuracy(after, task.answers, K)
    means = (alike.jaccard, alike.rbo, accuracy.recall, accuracy.reciprocal_rank)
    return Outcome(*(float(values.mean()) for values in means))


def experiment(budget: Budget, seeds: Sequence[int], progress: Progress) -> Results:
    """Run every seed."""
    plan = PLANS[budget]
    task = movielens_task(plan.users)
    runs = run_each(lambda seed: one_seed(plan, seed), list(seeds), progress, plan.n_jobs, "seed {}".format)
    cells = list(runs[seeds[0]])
    return Results(plan, task, {cell: [runs[seed][cell] for seed in seeds] for cell in cells})


# --- the claims --------------------------------------------------------------------------------------------------


def _gain_claim(id: str, change: str, text: str) -> Claim[Results]:
    @claim(
        id,
        text,
        paper="RBO and Jaccard higher in all cases; tables",
        protocol=f"Gains of FINEST over as many epochs of plain training, {change}: in top-10 Jaccard similarity and "
        "in RBO (p = 0.9) to the same method without the change.",
        reproduced=at_least("jaccard_gain", 0.04) & at_least("rbo_gain", 0.03),
        refuted=at_most("jaccard_gain", 0),
        over_seeds=["jaccard_gain", "rbo_gain"],
    )
    def gain(results: Results) -> Measured:
        gains = {
            name: results.values(FINEST, change, name) - results.values(PLAIN, change, name)
            for name in ("jaccard", "rbo")
        }
        before, after = (results.values(method, change, "jaccard").mean() for method in (PLAIN, FINEST))
        words = (
            f"{change}: Jaccard {before:.3f} plain, {after:.3f} with FINEST (gain {listed(gains['jaccard'], '+.3f')})"
        )
        numbers = {f"{name}_gain": values.mean() for name, values in gains.items()}
        return Measured(words, numbers, {f"{name}_gain": values for name, values in gains.items()})

    return gain


random_gain = _gain_claim("random", RANDOM, "The lists keep more of their order after a random deletion.")
cascade_gain = _gain_claim("cascade", CASCADE, "The same after the deletion that reaches most later interactions.")
replaced_gain = _gain_claim("replaced", REPLACED, "The same after 0.1 % of the items were replaced at random.")


@claim(
    "accuracy",
    "It costs no accuracy.",
    paper="recall and MRR as before or higher",
    protocol="Relative change against plain training, mean over changes: of recall@10 and of the mean reciprocal rank.",
    reproduced=at_least("recall_change", -0.05) & at_least("mrr_change", -0.08),
    refuted=below("recall_change", -0.1),
    over_seeds=["recall_change", "mrr_change"],
)
def accuracy(results: Results) -> Measured:
    names = {"recall_change": "recall", "mrr_change": "reciprocal_rank"}
    pairs = {k: (results.mean(FINEST, name), results.mean(PLAIN, name)) for k, name in names.items()}
    changes = {k: after / np.maximum(before, 1e-12) - 1 for k, (after, before) in pairs.items()}
    words = (
        f"recall@{K} {pairs['recall_change'][1].mean():.4f} plain, {pairs['recall_change'][0].mean():.4f} with FINEST; "
        f"mean reciprocal rank {pairs['mrr_change'][1].mean():.4f} and {pairs['mrr_change'][0].mean():.4f}"
    )
    return Measured(words, {k: values.mean() for k, values in changes.items()}, changes)


@claim(
    "simple-means",
    "It keeps more than simple means do at equal epochs.",
    paper="not tested: these baselines are ours",
    protocol="Lead: FINEST's Jaccard similarity, mean over changes, less that of the best other method (perturbed data "
    "without the rank loss, distillation from the served model, weight average, warm start), the best by "
    "its mean over seeds.",
    reproduced=above("lead", 0),
    over_seeds=["lead"],
)
def simple_means(results: Results) -> Measured:
    others = {method: results.mean(method, "jaccard") for method in METHODS[2:]}
    best = max(others, key=lambda method: others[method].mean())
    lead = results.mean(FINEST, "jaccard") - others[best]
    kept = ", ".join(f"{method} {values.mean():.3f}" for method, values in others.items())
    words = f"FINEST keeps {results.mean(FINEST, 'jaccard').mean():.3f} (Jaccard); {kept} (lead {listed(lead, '+.3f')})"
    return Measured(words, {"lead": lead.mean()}, {"lead": lead})


# --- the report --------------------------------------------------------------------------------------------------


def present(results: Results, claims: Mapping[str, ClaimResult]) -> Presentation:
    """Put figure, tables and summary together."""
    kept = {method: results.mean(method, "jaccard") for method in METHODS}
    picture = bar_chart(
        "What stays of the first ten places",
        {method: values.mean() for method, values in kept.items()},
        "Jaccard similarity, mean over changes and seeds",
        {method: (values.min(), values.max()) for method, values in kept.items()},
    )
    names = ("jaccard", "rbo", "recall", "reciprocal_rank")
    rows = [
        [method, change, *(float(results.values(method, change, name).mean()) for name in names)]
        for method in METHODS
        for change in CHANGES
    ]
    columns = ["method", "change", f"Jaccard@{K}", f"RBO (p = {P:g})", f"recall@{K}", "reciprocal rank"]
    return Presentation(
        f"Lists: {claims['cascade'].text}. Accuracy: {claims['accuracy'].text}.",
        [picture, Table("Mean over seeds", columns, rows), _notes(results)],
        picture.figure,
    )


def _notes(results: Results) -> Text:
    plan, log = results.plan, results.task.train
    return Text(
        f"MovieLens 100k, the first {plan.users} users: {len(log):,} training events of {len(log.items):,} films. An "
        f"LSTM of width 32, {plan.epochs} epochs at 0.005, then {plan.fine_epochs} at {plan.lr:g} by each method. "
        "Each method is compared with itself on unchanged data, same seed. Rank loss: margin 0.1, weight 1 with the "
        f"mean over positions, {plan.kept} items kept; perturbed copies of 1 %. The warm start goes on from the "
        "model that is served instead of one trained afresh, and is the cheapest of all.",
        title="How to read it",
    )


STUDY = Study(
    slug="finest",
    title="Does rank-preserving fine-tuning keep recommendations stable?",
    room="recsys",
    paper=Paper("FINEST: Stabilizing Recommendations by Rank-Preserving Fine-Tuning", "Oh et al.", 2024, "2402.03481"),
    seeds={"tiny": 2, "default": 4, "full": 6},
    experiment=experiment,
    claims=(random_gain, cascade_gain, replaced_gain, accuracy, simple_means),
    present=present,
)
