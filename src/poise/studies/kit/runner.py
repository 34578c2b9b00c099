"""Run one study, or list them all."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poise.studies.kit.results import RESULTS, entry_of, read_results, record_result
from poise.studies.kit.rules import ClaimVerdict
from poise.studies.kit.study import Budget, Progress
from poise.studies.registry import STUDIES, load_study

if TYPE_CHECKING:
    from poise.report import Report


@dataclass(frozen=True, slots=True)
class StudyListing:
    """A study and what came out of it last.

    Args:
        slug: its name.
        title: what it tests.
        verdict: verdict of its last recorded run; ``None`` if there is none.
        claims: verdict by claim id of that run.
        budget: budget of that run.
        date: day of that run, ISO.
    """

    slug: str
    title: str
    verdict: ClaimVerdict | None
    claims: dict[str, ClaimVerdict]
    budget: Budget | None
    date: str | None


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
) -> Report:
    """Run one study.

    Args:
        slug: its name.
        budget: ``"tiny"`` (seconds), ``"default"`` (up to three minutes) or ``"full"``.
        seeds: how many seeds; the study's own number for the budget by default.
        out: folder for ``report.html`` and ``result.json``; nothing is written by default.
        progress: called with the share done and a few words.
        results: results file into which the result is merged; none by default.

    Raises:
        ValueError: if there is no such study (the nearest names are offered), ``budget`` is unknown, or ``seeds`` is
            below 1.
    """
    study = load_study(slug)
    start = time.perf_counter()
    outcome = study.run(budget, seeds, progress=progress)
    entry = entry_of(outcome, time.perf_counter() - start)
    report = outcome.report()
    report.meta.update(entry["provenance"])
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
    claims = {claim["id"]: claim["verdict"] for claim in entry["claims"]}
    provenance = entry["provenance"]
    return StudyListing(slug, title, entry["verdict"], claims, provenance["budget"], provenance["date"])
