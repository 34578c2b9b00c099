"""The audit of a recommender: what changes its lists when it is trained again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poise.recsys.perturb import Kind
    from poise.report import Report


def audit_recommender(
    fit: Callable[[Any, int], Any],
    events: Any,
    k: int = 10,
    *,
    p: float = 0.9,
    kinds: Sequence[Kind] = ("delete",),
    n_random: int = 3,
    n_cascade: int = 1,
    test_fraction: float = 0.1,
    columns: tuple[str, str, str] = ("user", "item", "time"),
    seed: int = 0,
    n_jobs: int | None = None,
    folder: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Train a recommender again after small changes, and report how much of its lists stays.

    It is trained once as a base; with the same seed again, which must change nothing; with another seed; with the rows
    in another order; and with one interaction changed: a random one (``n_random`` times), the one that reaches most
    later interactions through users and items (``n_cascade`` times), the earliest and the latest. The lists of all
    users are compared with those of the base. Ctrl-C ends it with a report of what is there.

    Args:
        fit: ``fit(events, seed)`` trains a fresh recommender on a table like ``events`` and returns what it recommends:
            scores of shape (users, items), users and items in the order of their sorted labels in that table; or
            ``(ids, scores)``, both of shape (users, listed items), with the labels of the items listed for each user.
        events: pandas, Polars or Arrow table with one row for each interaction.
        k: places of a list that count for the top-k Jaccard similarity.
        p: persistence of the rank-biased overlap.
        kinds: changes of an interaction: ``"delete"``, ``"replace"`` (by the least popular item), ``"insert"`` (one of
            the least popular item before it).
        n_random: random interactions for each kind.
        n_cascade: interactions with the most descendants for each kind.
        test_fraction: of each user's last interactions, held out to measure accuracy; never changed.
        columns: names of the columns of user, item and time.
        seed: of the base; the other one is ``seed + 1``.
        n_jobs: parallel trainings, as in joblib; with several, ``fit`` must be picklable.
        folder: where finished trainings are kept, so that a call that was stopped continues.
        progress: called after each training with those done and those in all; a progress bar by default.

    Returns:
        A report: similarity by change, accuracy, users with low accuracy against those with high, the interactions
        that change most, and findings.

    Raises:
        TypeError: if ``fit`` is not callable.
        ValueError: if ``events`` is not a log of interactions, no interaction can be changed without losing its user
            or item, or what ``fit`` returns has another shape or holds NaN.

    References:
        Oh, Ustun, McAuley, Kumar, "Rank List Sensitivity of Recommender Systems to Interaction Perturbations", CIKM
        2022, arXiv:2201.12686.
    """
    # Imported here: listings read the rules of this folder, and need no measurements.
    from poise.recsys.recommender_audit.measure import Plan, measure
    from poise.recsys.recommender_audit.report import recommender_report

    plan = Plan(k, p, tuple(kinds), n_random, n_cascade, test_fraction, columns, seed)
    return recommender_report(measure(fit, events, plan, n_jobs=n_jobs, folder=folder, progress=progress))
