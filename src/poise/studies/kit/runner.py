"""Run one study, with one set of seeds or two, or list them all."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poise.studies.kit.results import (
    RESULTS,
    entry_of,
    entry_of_both,
    read_results,
    record_result,
    seed_sets,
    settled_verdicts,
)
from poise.studies.kit.rules import ClaimVerdict
from poise.studies.kit.seed_sets import SettledVerdict
from poise.studies.kit.study import Budget, Outcome, Progress
from poise.studies.registry import STUDIES, load_study

if TYPE_CHECKING:
    from poise.report import Report

FIRST_SEEDS = (0, 100)
"""The first seeds of the two sets with which results are recorded."""


@dataclass(frozen=True, slots=True)
class StudyListing:
    """A study and what came out of it last.

    Args:
        slug: its name.
        title: what it tests.
        verdict: verdict of its last recorded run; ``None`` if there is none.
        claims: verdict by claim id of that run; *not settled* where two sets of seeds disagree.
        budget: budget of that run.
        date: day of that run, ISO.
        seed_sets: with how many disjoint sets of seeds it was recorded: 0, 1 or 2.
    """

    slug: str
    title: str
    verdict: ClaimVerdict | None
    claims: dict[str, SettledVerdict]
    budget: Budget | None
    date: str | None
    seed_sets: int = 0


def list_studies(results: Path = RESULTS) -> list[StudyListing]:
    """Return every registered study with its last recorded verdict, without importing any of them.

    Args:
        results: results file to read.
    """
    entries = read_results(results)
    return [_listing(slug, title, entries.get(slug)) for slug, title in STUDIES.items()]


def run_study(
    slug: str,
    budget: Budget = "default",
    seeds: int | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
    results: Path | None = None,
    seed: int = 0,
) -> Report:
    """Run one study with one set of seeds.

    Args:
        slug: its name.
        budget: ``"tiny"`` (seconds), ``"default"`` (up to three minutes) or ``"full"``.
        seeds: how many seeds; the study's own number for the budget by default.
        out: folder for ``report.html`` and ``result.json``; nothing is written by default.
        progress: called with the fraction done and a few words.
        results: results file into which the result is merged; none by default.
        seed: the first seed; the others follow it.

    Raises:
        ValueError: if there is no such study (the nearest names are offered), ``budget`` is unknown, ``seeds`` is
            below 1, or ``seed`` is negative.
    """
    outcome, entry = _run(slug, budget, seeds, seed, progress)
    return _keep(outcome.report(), entry, out, results)


def run_study_twice(
    slug: str,
    budget: Budget = "default",
    seeds: int | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
    results: Path | None = None,
    first_seeds: tuple[int, int] = FIRST_SEEDS,
) -> Report:
    """Run one study with two disjoint sets of seeds. Claims whose verdicts differ are *not settled*.

    Args:
        slug: its name.
        budget: as for :func:`run_study`, for each set.
        seeds: how many seeds each set has; the study's own number for the budget by default.
        out: folder for ``report.html`` and ``result.json``; nothing is written by default.
        progress: called with the fraction done and a few words.
        results: results file into which the result of both is merged; none by default.
        first_seeds: first seed of each set.

    Raises:
        ValueError: as :func:`run_study`; or if the sets share seeds.
    """
    from poise.studies.kit.grid import part_of  # not above: a listing needs no joblib

    count = load_study(slug).seeds.get(budget, 1) if seeds is None else seeds
    low, high = sorted(first_seeds)
    if high - low < count:  # before hours are spent on it
        raise ValueError(f"first_seeds must be at least {count} apart, got {first_seeds}: the sets would share seeds")
    parts = (None, None) if progress is None else (part_of(progress, 0, 0.5), part_of(progress, 0.5, 1))
    (first, entry), (other, again) = (
        _run(slug, budget, seeds, seed, part) for seed, part in zip(first_seeds, parts, strict=True)
    )
    return _keep(first.report(other), entry_of_both(entry, again), out, results)


def _run(
    slug: str, budget: Budget, seeds: int | None, seed: int, progress: Progress | None
) -> tuple[Outcome, dict[str, Any]]:
    study = load_study(slug)
    start = time.perf_counter()
    outcome = study.run(budget, seeds, seed, progress)
    return outcome, entry_of(outcome, time.perf_counter() - start)


def _keep(report: Report, entry: dict[str, Any], out: str | Path | None, results: Path | None) -> Report:
    """Complete a report with its provenance, write what is to be written, and return it."""
    report.meta.update({**entry["provenance"], "seeds": [seed for seeds in seed_sets(entry) for seed in seeds]})
    if out is not None:
        folder = Path(out)
        report.save(folder / "report.html")
        text = json.dumps(entry, indent=1, ensure_ascii=False, allow_nan=False)
        (folder / "result.json").write_text(text + "\n", encoding="utf-8")
    if results is not None:
        record_result(entry, results)
    return report


def _listing(slug: str, title: str, entry: dict[str, Any] | None) -> StudyListing:
    if entry is None:
        return StudyListing(slug, title, None, {}, None, None)
    made, sets = entry["provenance"], len(seed_sets(entry))
    return StudyListing(slug, title, entry["verdict"], settled_verdicts(entry), made["budget"], made["date"], sets)
