"""What holds of every registered study, so that a new one brings only tests of its own mathematics."""

import itertools
import math
import random
import time
from pathlib import Path

import pytest

from poise.studies import BUDGETS, CLAIM_VERDICTS, STUDIES, load_study, read_results, settled_verdicts
from poise.studies.kit.seed_sets import total_verdict

# Values that thresholds of rules usually lie between; each rule adds those around its own.
USUAL = (-1e3, -1.0, -0.3, 0.0, 0.01, 0.3, 0.6, 1.0, 2.0, 30.0, 1e5)


def candidates(rule, most=20_000):
    """Yield numbers on both sides of every bound of a rule: all combinations, or a sample of them."""
    grids = []
    for bounds in rule.bounds.values():
        around = [bound + sign * max(1e-3 * abs(bound), 1e-12) for bound in bounds for sign in (-1, 0, 1)]
        grids.append(sorted({*USUAL, *around}))
    if math.prod(map(len, grids)) <= most:
        rows = itertools.product(*grids)
    else:
        draw = random.Random(0)
        rows = ([draw.choice(grid) for grid in grids] for _ in range(most))
    for row in rows:
        yield dict(zip(rule.bounds, row, strict=True))


@pytest.mark.parametrize("slug", list(STUDIES))
def test_a_study_is_what_the_registry_says(slug):
    study = load_study(slug)
    assert (study.slug, study.title) == (slug, STUDIES[slug])
    assert study.title.endswith("?")
    assert (Path(__file__).parents[2] / "src" / "poise" / study.room).is_dir()
    assert set(study.seeds) == set(BUDGETS)
    assert study.seeds["default"] >= 3
    assert study.paper.arxiv in study.paper.url


@pytest.mark.parametrize("slug", list(STUDIES))
def test_every_verdict_can_come_out(slug):
    """A rule that could not refute, or never reproduce, would test nothing."""
    for claim in load_study(slug).claims:
        if claim.rule is None:
            assert claim.protocol, f"{claim.id}: protocol must say why the claim is not tested"
            continue
        wanted = {"reproduced", "refuted"} | ({"partly"} if claim.rule.refuted is not None else set())
        seen = set()
        for numbers in candidates(claim.rule):
            # Equal values in many seeds: an interval of width 0, and fractions that are sure enough.
            by_seed = {name: [value] * 50 for name, value in numbers.items()}
            seen.add(claim.rule.verdict(numbers, by_seed))
            if claim.rule.over_seeds and "partly" in wanted:
                wide = dict.fromkeys(claim.rule.over_seeds, (-math.inf, math.inf))
                seen.add(claim.rule.verdict(numbers, by_seed, wide))
            if seen >= wanted:
                break
        assert seen == wanted, f"{claim.id}: {claim.test}"


@pytest.mark.slow
@pytest.mark.parametrize("slug", list(STUDIES))
def test_the_tiny_budget_runs_judges_and_reports(slug):
    study, fractions = load_study(slug), []
    state = random.getstate()
    start = time.process_time()
    outcome = study.run("tiny", progress=lambda fraction, words: fractions.append(fraction))
    assert time.process_time() - start <= 10  # 5 seconds when nothing else runs
    assert random.getstate() == state
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1.0, rel=0, abs=1e-9)
    for result in outcome.results:
        named = result.claim.rule.bounds if result.claim.rule is not None else {}
        assert not result.numbers or set(named) <= {*result.numbers, *result.by_seed}, result.claim.id
        assert result.text
    html = outcome.report().to_html()
    assert all(result.verdict in html for result in outcome.results)
    assert outcome.presentation.picture.data


@pytest.mark.parametrize("slug", list(STUDIES))
def test_a_claim_is_judged_over_seeds_or_says_why_not(slug):
    for claim in load_study(slug).claims:
        if claim.rule is not None:
            assert claim.rule.judges_over_seeds != bool(claim.without_seeds), claim.id


@pytest.mark.parametrize("slug", list(STUDIES))
def test_a_recorded_result_is_what_todays_rules_say_of_the_recorded_numbers(slug):
    entry, study = read_results().get(slug), load_study(slug)
    if entry is None:
        return  # not yet recorded: nothing to compare
    assert entry["title"] == study.title
    assert entry["verdict"] == total_verdict(settled_verdicts(entry).values())
    claims = {claim.id: claim for claim in study.claims}
    recorded = [claim["id"] for claim in entry["claims"]]
    assert all(claim["verdict"] in CLAIM_VERDICTS for claim in entry["claims"])
    if (
        "other_seeds" not in entry
    ):  # recorded before claims were judged over seeds: its verdicts cannot be computed again
        assert recorded == [id for id in claims if id in recorded]  # a claim may be newer
        return
    assert recorded == list(claims)
    tests = {claim["id"]: claim["test"] for claim in entry["claims"]}
    assert tests == {id: claim.test for id, claim in claims.items()}
    for result in [*entry["claims"], *entry["other_seeds"]["claims"]]:
        if not result["numbers"]:
            assert result["verdict"] == "not tested"
            continue
        numbers = {name: float(value) for name, value in result["numbers"].items()}
        by_seed = {name: [json_value(v) for v in values] for name, values in result.get("by_seed", {}).items()}
        intervals = {name: tuple(map(float, ends)) for name, ends in result.get("intervals", {}).items()}
        assert result["verdict"] == claims[result["id"]].rule.verdict(numbers, by_seed, intervals), result["id"]


def json_value(value):
    """Return a value by seed as it was before it was written: yes/no outcomes stay what they are."""
    return value if isinstance(value, bool) else float(value)
