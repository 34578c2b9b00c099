"""What came out of the studies: one JSON file, with where each result came from."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from poise.studies.kit.seed_sets import SettledVerdict, settled_verdict, total_verdict
from poise.studies.kit.study import Outcome
from poise.tools.atomic_write import write_text

RESULTS = Path(__file__).parents[1] / "RESULTS.json"
"""Results of the last ``make studies``; the gallery page is built from it."""

_PACKAGES = ("poise", "torch", "numpy", "scipy")


def entry_of(outcome: Outcome, seconds: float) -> dict[str, Any]:
    """Return a finished study as plain JSON types: claims, verdicts, numbers, picture and provenance.

    Args:
        outcome: the finished study.
        seconds: how long it took.
    """
    study = outcome.study
    paper = study.paper
    return {
        "slug": study.slug,
        "title": study.title,
        "room": study.room,
        "paper": {"title": paper.title, "authors": paper.authors, "year": paper.year, "arxiv": paper.arxiv},
        "verdict": outcome.verdict,
        "summary": outcome.presentation.summary,
        "claims": [result.to_dict() for result in outcome.results],
        # Without its template, which the page brings along, a picture is small.
        "picture": json.loads(outcome.presentation.picture.update_layout(template="none").to_json(engine="json")),
        "provenance": {
            "budget": outcome.budget,
            "seeds": list(outcome.seeds),
            "seconds": round(seconds, 1),
            "date": datetime.now(UTC).date().isoformat(),
            "commit": _commit(),
            "versions": {"python": platform.python_version(), **{p: _version(p) for p in _PACKAGES}},
            "platform": f"{platform.system()} on {platform.machine()}, {os.cpu_count()} logical CPU cores",
        },
    }


def entry_of_both(first: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return one entry of two runs of a study with disjoint sets of seeds.

    It is the first run's entry with the other's verdicts, numbers and provenance as ``other_seeds``; its verdict is
    that of both.

    Args:
        first: entry of the run whose texts and picture are shown.
        other: entry of the run with other seeds.

    Raises:
        ValueError: if the entries are of different studies or claims, or share seeds.
    """
    ids = [[claim["id"] for claim in entry["claims"]] for entry in (first, other)]
    if first["slug"] != other["slug"] or ids[0] != ids[1]:
        raise ValueError(f"first and other must be runs of one study, got {first['slug']!r} and {other['slug']!r}")
    common = set(first["provenance"]["seeds"]) & set(other["provenance"]["seeds"])
    if common:
        raise ValueError(f"first and other must have no seed in common, got {sorted(common)} in both")
    measured = ("id", "ours", "verdict", "numbers", "by_seed", "intervals")
    claims = [{key: claim[key] for key in measured if key in claim} for claim in other["claims"]]
    rest = {key: other[key] for key in ("verdict", "summary", "provenance")}
    both = {**first, "other_seeds": {**rest, "claims": claims}}
    return {**both, "verdict": total_verdict(settled_verdicts(both).values())}


def settled_verdicts(entry: dict[str, Any]) -> dict[str, SettledVerdict]:
    """Return the verdict of each claim of an entry by id: *not settled* where its two sets of seeds disagree.

    An entry of one set of seeds has that set's verdicts.

    Args:
        entry: of a results file.
    """
    sets = [entry["claims"], *([entry["other_seeds"]["claims"]] if "other_seeds" in entry else [])]
    by_id = [{claim["id"]: claim["verdict"] for claim in claims} for claims in sets]
    return {id: settled_verdict(verdicts[id] for verdicts in by_id) for id in by_id[0]}


def seed_sets(entry: dict[str, Any]) -> list[list[int]]:
    """Return the sets of seeds, one or two, with which an entry was recorded."""
    runs = [entry, *([entry["other_seeds"]] if "other_seeds" in entry else [])]
    return [run["provenance"]["seeds"] for run in runs]


def read_results(path: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Return the entries of a results file by slug; empty if there is no such file.

    Raises:
        ValueError: if the file is no results file.
    """
    if not path.is_file():
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {entry["slug"]: entry for entry in entries}
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise ValueError(f"path must be a results file (a JSON list of studies), got {str(path)!r}: {error}") from error


def record_result(entry: dict[str, Any], path: Path = RESULTS) -> None:
    """Put one study's entry into a results file; the entries of other studies stay as they are."""
    entries = {**read_results(path), entry["slug"]: entry}
    text = json.dumps([entries[slug] for slug in sorted(entries)], indent=1, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the checkout that this file belongs to; marked if files of the package differ from it."""
    here = Path(__file__).resolve()
    # An installed package may lie inside somebody else's repository: only a tracked file tells that it is ours.
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None
    commit, changes = _git(here.parent, "rev-parse", "HEAD"), _git(here.parents[1], "status", "--porcelain", "--", ".")
    others = [line for line in (changes or "").splitlines() if not line.endswith(RESULTS.name)]
    return f"{commit} with changes" if commit and others else commit


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None  # no git, or no checkout
    return done.stdout.strip()
