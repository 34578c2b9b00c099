"""How a recommender is audited: which trainings, and how their lists are compared."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import narwhals as nw
import numpy as np
from jaxtyping import Bool, Float, Int

from poise.evidence.refits import Variant, refit
from poise.recsys.event_log import EventLog
from poise.recsys.interaction_graph import InteractionGraph
from poise.recsys.next_item_accuracy import next_item_accuracy
from poise.recsys.perturb import KINDS, Kind, perturb
from poise.recsys.rank_list_sensitivity import RankListSensitivity, rank_list_sensitivity
from poise.recsys.recommender_audit.facts import Arm, ArmKind, RecommenderFacts
from poise.tools.progress_bar import progress_bar

_GROUP = 0.2  # fraction of the users in the groups of low and high accuracy


@dataclass(frozen=True, slots=True)
class Plan:
    """What is compared; the arguments of :func:`audit_recommender`."""

    k: int
    p: float
    kinds: tuple[Kind, ...]
    n_random: int
    n_cascade: int
    test_fraction: float
    columns: tuple[str, str, str]
    seed: int

    def __post_init__(self) -> None:
        if unknown := set(self.kinds) - set(KINDS):
            raise ValueError(f"kinds must be some of {', '.join(KINDS)}, got {sorted(unknown)}")
        if min(self.n_random, self.n_cascade) < 0:
            raise ValueError(f"n_random and n_cascade must be at least 0, got {self.n_random} and {self.n_cascade}")


@dataclass(frozen=True, slots=True)
class _Change:
    """One interaction that is changed."""

    kind: ArmKind
    row: int  # in the table of the user
    place: int  # in the table that is trained on
    reached: int


def measure(
    fit: Callable[[Any, int], Any],
    events: Any,
    plan: Plan,
    *,
    n_jobs: int | None,
    folder: str | Path | None,
    progress: Callable[[int, int], None] | None,
) -> RecommenderFacts:
    """Train the base and its variants, and compare their lists; arguments as in :func:`audit_recommender`."""
    if not callable(fit):
        raise TypeError(f"fit must be a function fit(events, seed), got {type(fit).__name__}")
    log = EventLog.from_frame(events, *plan.columns)
    held = log.held_out(plan.test_fraction)
    rows = np.sort(log.row[~held])
    train = nw.from_native(events, eager_only=True)[rows.tolist()].to_native()
    changes = _changes(log.take(~held), rows, plan)
    variants = {"base": Variant(train, plan.seed), **_controls(train, plan.seed), **_perturbed(train, changes, plan)}
    started = time.perf_counter()
    results = _refit(fit, variants, n_jobs, folder, progress)
    seconds = (time.perf_counter() - started) / max(1, len(results))
    if "base" not in results:
        raise KeyboardInterrupt  # nothing to compare with
    return _facts(results, variants, changes, _Lists.of(train, log, held, plan), plan, seconds)


def _controls(train: Any, seed: int) -> dict[str, Variant]:
    table = nw.from_native(train, eager_only=True)
    order = np.random.default_rng(seed).permutation(len(table)).tolist()
    shuffled = table[order].to_native()
    return {
        "same seed": Variant(train, seed),
        "other seed": Variant(train, seed + 1),
        "other row order": Variant(shuffled, seed),
    }


def _changes(log: EventLog, rows: Int[np.ndarray, " train"], plan: Plan) -> dict[str, _Change]:
    """The interactions to change, by words. None takes the last interaction of a user or an item away."""
    users, items = np.bincount(log.user), np.bincount(log.item)
    allowed = np.flatnonzero((users[log.user] > 1) & (items[log.item] > 1))
    if not len(allowed):
        raise ValueError("events must hold an interaction whose user and item have another one, got none")
    reached = InteractionGraph.from_log(log).cascade_scores()
    # A stable sort: among equal scores the earliest comes first.
    ranked = allowed[np.argsort(-reached[allowed], kind="stable")]
    random = np.random.default_rng(plan.seed).permutation(allowed)[: plan.n_random]
    chosen: dict[str, tuple[ArmKind, int]] = {f"random {i + 1}": ("random", int(e)) for i, e in enumerate(random)}
    chosen |= {f"most reaching {i + 1}": ("chosen", int(e)) for i, e in enumerate(ranked[: plan.n_cascade])}
    chosen |= {"earliest": ("chosen", int(allowed[0])), "latest": ("chosen", int(allowed[-1]))}
    return {
        name: _Change(kind, int(log.row[event]), int(np.searchsorted(rows, log.row[event])), int(reached[event]))
        for name, (kind, event) in chosen.items()
    }


def _perturbed(train: Any, changes: Mapping[str, _Change], plan: Plan) -> dict[str, Variant]:
    return {
        f"{kind} {name}": Variant(perturb(train, [change.place], kind, columns=plan.columns), plan.seed)
        for kind in plan.kinds
        for name, change in changes.items()
    }


def _refit(
    fit: Callable[[Any, int], Any],
    variants: Mapping[str, Variant],
    n_jobs: int | None,
    folder: str | Path | None,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    if progress is not None:
        return refit(fit, variants, n_jobs=n_jobs, folder=folder, progress=progress)
    with progress_bar() as bar:
        task = bar.add_task(f"{len(variants)} trainings", total=len(variants))
        return refit(
            fit, variants, n_jobs=n_jobs, folder=folder, progress=lambda done, _: bar.update(task, completed=done)
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Lists:
    """How the results of a training are read: users and items of the table, and the held-out interactions."""

    users: np.ndarray
    items: np.ndarray
    test_user: Int[np.ndarray, " test"]
    test_item: Int[np.ndarray, " test"]  # column; -1 for an item that is not trained on
    k: int
    p: float

    @classmethod
    def of(cls, train: Any, log: EventLog, held: Bool[np.ndarray, " events"], plan: Plan) -> _Lists:
        table = nw.from_native(train, eager_only=True)
        users, items = (np.unique(table[name].to_numpy()) for name in plan.columns[:2])
        test_items, test_users = log.items[log.item[held]], log.users[log.user[held]]
        place = np.minimum(np.searchsorted(items, test_items), len(items) - 1)
        column = np.where(items[place] == test_items, place, -1)
        return cls(users, items, np.searchsorted(users, test_users), column, plan.k, plan.p)

    def read(self, name: str, result: Any) -> Any:
        """Return scores, or a ranked list for each user.

        Raises:
            ValueError: if shapes are not those of the users and items.
        """
        if isinstance(result, tuple) and len(result) == 2:
            ids, scores = np.asarray(result[0]), np.asarray(result[1], dtype=float)
            if ids.shape != scores.shape or ids.ndim != 2 or len(ids) != len(self.users):
                raise ValueError(
                    f"fit must return ids and scores of shape ({len(self.users)} users, listed items), got "
                    f"{ids.shape} and {scores.shape} for {name!r}"
                )
            if np.isnan(scores).any():
                raise ValueError(f"fit must return scores without NaN, got NaN for {name!r}")
            return [list(row[np.argsort(-score, kind="stable")]) for row, score in zip(ids, scores, strict=True)]
        scores = np.asarray(result, dtype=float)
        if scores.shape != (len(self.users), len(self.items)):
            raise ValueError(
                f"fit must return scores of shape ({len(self.users)} users, {len(self.items)} items), or (ids, "
                f"scores), got {scores.shape} for {name!r}"
            )
        if np.isnan(scores).any():
            raise ValueError(f"fit must return scores without NaN, got NaN for {name!r}")
        return scores

    def ranks(self, lists: Any) -> Float[np.ndarray, " test"]:
        """Return the rank of each held-out item in its user's list; infinite if it is not there."""
        known = self.test_item >= 0
        ranks = np.full(len(known), np.inf)
        if isinstance(lists, np.ndarray):
            if known.any():
                ranks[known] = next_item_accuracy(lists[self.test_user[known]], self.test_item[known], self.k).rank
            return ranks
        for i in np.flatnonzero(known):
            listed, item = lists[self.test_user[i]], self.items[self.test_item[i]]
            ranks[i] = listed.index(item) + 1 if item in listed else np.inf
        return ranks

    def compare(self, base: Any, other: Any) -> RankListSensitivity:
        """Compare two trainings user by user."""
        return rank_list_sensitivity(base, other, self.k, self.p)


def _facts(
    results: Mapping[str, Any],
    variants: Mapping[str, Variant],
    changes: Mapping[str, _Change],
    reader: _Lists,
    plan: Plan,
    seconds: float,
) -> RecommenderFacts:
    lists = {name: reader.read(name, result) for name, result in results.items()}
    base, base_ranks = lists["base"], reader.ranks(lists["base"])
    arms = []
    for name, other in lists.items():
        if name == "base":
            continue
        change = changes.get(name.partition(" ")[2]) if name.partition(" ")[0] in plan.kinds else None
        shared = (reader.compare(base, other), _recall(reader.ranks(other), plan.k))
        if change is None:
            arms.append(Arm(name, "control", *shared))
        else:
            arms.append(Arm(name, change.kind, *shared, change.row, change.reached))
    low, high = _groups(base_ranks, reader)
    return RecommenderFacts(
        arms=arms,
        missing=[name for name in variants if name not in results],
        k=plan.k,
        p=plan.p,
        users=len(reader.users),
        items=len(reader.items),
        events=len(nw.from_native(variants["base"].data, eager_only=True)),
        recall=_recall(base_ranks, plan.k),
        low=low,
        high=high,
        seconds=seconds,
        seed=plan.seed,
    )


def _recall(ranks: Float[np.ndarray, " test"], k: int) -> float:
    return float((ranks <= k).mean()) if len(ranks) else float("nan")


def _groups(
    ranks: Float[np.ndarray, " test"], reader: _Lists
) -> tuple[Bool[np.ndarray, " users"], Bool[np.ndarray, " users"]]:
    """The fifths of the users with the lowest and the highest mean reciprocal rank of their held-out interactions."""
    users = len(reader.users)
    count = np.bincount(reader.test_user, minlength=users)
    accuracy = np.bincount(reader.test_user, 1 / ranks, minlength=users) / np.maximum(1, count)
    tested = np.flatnonzero(count)
    size = int(_GROUP * len(tested))
    order = tested[np.argsort(accuracy[tested], kind="stable")]
    low, high = np.zeros((2, users), bool)
    if size:
        low[order[:size]], high[order[-size:]] = True, True
    return low, high
