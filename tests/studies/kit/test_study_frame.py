import io
import json
import math
from dataclasses import replace

import plotly.graph_objects as go
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from poise.report import Table
from poise.studies import (
    STUDIES,
    Claim,
    Measured,
    Paper,
    Presentation,
    Rule,
    Study,
    claim,
    list_studies,
    load_study,
    read_results,
    record_result,
    run_study,
    run_study_twice,
    settled_verdicts,
)
from poise.studies.kit.results import entry_of, entry_of_both, seed_sets
from poise.studies.kit.rules import above, at_least
from poise.studies.kit.seed_sets import settled_verdict, total_verdict


@claim("first", "A beats B", paper="gap 1.0", protocol="Same data.", reproduced=above("gap", 0))
def first_claim(results):
    gap = results["first"]
    return Measured(f"gap {gap}", {"gap": gap}, {"gap": [gap, 1.0]})


@claim("second", "C beats D", paper="gap 2.0", reproduced=above("gap", 0))
def second_claim(results):
    gap = results["second"]
    return Measured("no data") if gap is None else Measured(f"gap {gap}", {"gap": gap})


CLAIMS = (first_claim, second_claim)


def study(first=1.0, second=1.0):
    def experiment(budget, seeds, progress):
        progress(0.5, f"{budget} {len(seeds)}")
        return {"first": first, "second": second}

    def present(results, claims):
        summary = f"A was compared with B: {claims['first'].text}."
        return Presentation(summary, [Table("T", ["a"], [[1]])], go.Figure(go.Bar(y=[1])))

    paper = Paper("On A", "Somebody", 2020, "2001.00001")
    seeds = {"tiny": 1, "default": 3, "full": 5}
    return Study("on-a", "Does A beat B?", "evidence", paper, seeds, experiment, CLAIMS, present)


@pytest.fixture
def registered(monkeypatch):
    """Make `fair-coins` load as the small study above, or whatever the test puts in its place."""
    box = {"study": replace(study(), slug="fair-coins")}
    monkeypatch.setattr("poise.studies.kit.runner.load_study", lambda slug: box["study"])
    return box


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        (1.0, 1.0, "reproduced"),
        (-1.0, -1.0, "refuted"),
        (1.0, -1.0, "partly"),
        (1.0, None, "reproduced"),
        (math.inf, -1.0, "partly"),
    ],
)
def test_verdicts_come_from_the_numbers(first, second, verdict):
    outcome = study(first, second).run("tiny")
    assert [r.verdict for r in outcome.results] == [
        "not tested" if v is None else ("reproduced" if v > 0 else "refuted") for v in (first, second)
    ]
    assert outcome.verdict == outcome.report().verdict == verdict


def test_seeds_and_budget_reach_the_experiment():
    told = []
    outcome = study().run("default", seed=4, progress=lambda fraction, words: told.append((fraction, words)))
    assert outcome.seeds == (4, 5, 6)
    assert told == [(0.5, "default 3"), (1.0, "done")]
    assert study().run("tiny", seeds=2).seeds == (0, 1)


def test_what_cannot_be_judged_is_an_error():
    with pytest.raises(ValueError, match=r"'first' cannot be judged: \['gap'\] are NaN"):
        study(math.nan).run("tiny")
    untested = Claim("third", "E beats F", "none", "No data are public.", None, lambda results: Measured("no data"))
    assert untested.judge({}).verdict == "not tested"
    assert untested.test == "No data are public."
    with pytest.raises(ValueError, match="'third' has no rule, so nothing may be measured"):
        replace(untested, measure=lambda results: Measured("1", {"gap": 1.0})).judge({})


def test_a_claim_says_how_it_is_tested_and_keeps_the_values_of_single_seeds():
    assert first_claim.test == "Same data. Reproduced if gap > 0; refuted otherwise."
    assert first_claim.rule == Rule(first_claim.rule.reproduced)
    (first, second) = study(2.0).run("tiny").results
    assert first.by_seed == {"gap": (2.0, 1.0)}
    assert first.to_dict()["by_seed"] == {"gap": [2.0, 1.0]}
    assert "by_seed" not in second.to_dict()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": "huge"}, "budget must be one of"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"seed": -1}, "seed must not be negative, got -1"),
    ],
)
def test_bad_run_options(options, message):
    with pytest.raises(ValueError, match=message):
        study().run(**options)


def test_a_study_is_checked_when_it_is_made():
    with pytest.raises(ValueError, match="claims must have distinct ids"):
        replace(study(), claims=(CLAIMS[0], CLAIMS[0]))
    with pytest.raises(ValueError, match="claims must have distinct ids"):
        replace(study(), claims=())
    with pytest.raises(ValueError, match="seeds must name every budget"):
        replace(study(), seeds={"tiny": 1})


def test_report_names_claims_paper_and_run():
    report = study().run("tiny").report()
    html = report.to_html()
    for words in ("A beats B", "gap 1.0", "reproduced", "2001.00001", "A was compared with B: gap 1.0."):
        assert words in html
    assert report.meta["budget"] == "tiny"
    out = io.StringIO()
    Console(file=out, width=120).print(report)
    assert "A beats B" in out.getvalue()


def test_entries_are_json_and_merge(tmp_path):
    path = tmp_path / "R.json"
    one = entry_of(study(math.inf).run("tiny"), 1.23)
    other = {**one, "slug": "other"}
    record_result(one, path)
    record_result(other, path)
    record_result({**one, "title": "New"}, path)
    entries = read_results(path)
    assert list(entries) == ["on-a", "other"]
    assert (entries["on-a"]["title"], entries["other"]["title"]) == ("New", "Does A beat B?")
    assert float(entries["other"]["claims"][0]["numbers"]["gap"]) == math.inf
    assert [p.name for p in tmp_path.iterdir()] == ["R.json"]


def test_provenance_says_where_a_result_comes_from():
    provenance = entry_of(study().run("default"), 1.26)["provenance"]
    assert (provenance["budget"], provenance["seeds"], provenance["seconds"]) == ("default", [0, 1, 2], 1.3)
    assert {"python", "poise", "torch", "numpy", "scipy"} == set(provenance["versions"])
    assert "cores" in provenance["platform"]
    assert "/" not in provenance["platform"]


def test_picture_of_an_entry_draws():
    entry = entry_of(study().run("tiny"), 0.1)
    picture = json.loads(json.dumps(entry["picture"]))
    assert go.Figure(picture).data[0].type == "bar"


@pytest.mark.parametrize("text", ["{", "[1]", '[{"title": "no slug"}]'])
def test_a_corrupt_results_file_is_named(tmp_path, text):
    path = tmp_path / "R.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"path must be a results file.*R\.json"):
        read_results(path)


def test_running_writes_report_and_result(registered, tmp_path):
    results = tmp_path / "R.json"
    report = run_study("fair-coins", "tiny", out=tmp_path / "out", results=results)
    assert "A beats B" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    entry = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    assert entry == read_results(results)["fair-coins"]
    assert report.meta["versions"]["python"]
    listing = {s.slug: s for s in list_studies(results)}
    assert listing["fair-coins"].claims == {"first": "reproduced", "second": "reproduced"}
    assert listing["small-scale-proxies"].verdict is None


@claim("gain", "It gains.", paper="1", reproduced=above("gain", 0), over_seeds=["gain"])
def gain_claim(results):
    gains = results["gains"]
    return Measured("gains", {"gain": sum(gains) / len(gains)}, {"gain": gains})


@claim("trains", "It trains.", paper="always", reproduced=at_least("trains", 0.5), over_seeds=["trains"])
def trains_claim(results):
    trained = [gain > -1 for gain in results["gains"]]
    return Measured("trained", {"trains": sum(trained) / len(trained)}, {"trains": trained})


def seeded(gain_of, count=4):
    """Return a study whose gain is a function of the seed."""
    base = study()

    def experiment(budget, seeds, progress):
        return {"gains": [gain_of(seed) for seed in seeds]}

    def present(results, claims):
        return Presentation("Gains.", [], go.Figure(go.Bar(y=[1])))

    seeds = dict.fromkeys(base.seeds, count)
    parts = {"experiment": experiment, "present": present, "claims": (gain_claim, trains_claim), "seeds": seeds}
    return replace(base, slug="fair-coins", **parts)


def test_a_claim_over_seeds_is_judged_on_its_interval_and_says_so_where_that_leaves_it_open():
    narrow, wide = (seeded(lambda seed, noise=noise: 1 + noise * (-1) ** seed).run("tiny") for noise in (0.1, 2.0))
    assert [outcome.results[0].verdict for outcome in (narrow, wide)] == ["reproduced", "partly"]
    assert narrow.results[0].measured == "gains"
    assert wide.results[0].measured == "gains; gain -2.67 to 4.67 (95 % interval of the mean of 4 seeds)"
    trains = narrow.results[1]  # four of four
    assert trains.verdict == "partly"
    assert trains.measured.endswith("4 of 4 seeds (exact 95 % interval 0.40 to 1.00; so few seeds cannot show 50 %)")
    assert trains.by_seed["trains"] == (True,) * 4
    assert json.loads(json.dumps(trains.to_dict()))["by_seed"]["trains"] == [True] * 4
    assert trains.measured in narrow.report().to_html()


def test_a_number_over_seeds_must_be_the_mean_of_its_values_by_seed():
    wrong = replace(gain_claim, measure=lambda results: Measured("1", {"gain": 1.0}, {"gain": [1.0, 2.0]}))
    with pytest.raises(ValueError, match=r"'gain' is judged over seeds and must be the mean .* 1\.5, got 1\.0"):
        wrong.judge({})
    with pytest.raises(ValueError, match=r"those of \['gain'\] are missing"):
        replace(gain_claim, measure=lambda results: Measured("1", {"gain": 1.0})).judge({})


def test_claims_on_which_two_sets_of_seeds_disagree_are_not_settled(registered, tmp_path):
    registered["study"] = seeded(lambda seed: 2.0 + 0.01 * (seed % 2) - (4 if seed >= 100 else 0), count=8)
    results = tmp_path / "R.json"
    told = []
    report = run_study_twice(
        "fair-coins", "tiny", out=tmp_path, progress=lambda fraction, words: told.append(fraction), results=results
    )
    assert told == [0.5, 1.0]
    assert report.meta["seeds"] == [*range(8), *range(100, 108)]
    for words in ("Here, seeds 0 to 7", "Here, seeds 100 to 107", "not settled", "refuted: gains"):
        assert words in report.to_html()
    entry = read_results(results)["fair-coins"]
    assert entry == json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert [c["verdict"] for c in entry["claims"]] == ["reproduced", "reproduced"]
    assert [c["verdict"] for c in entry["other_seeds"]["claims"]] == ["refuted", "refuted"]
    assert settled_verdicts(entry) == {"gain": "not settled", "trains": "not settled"}
    assert entry["verdict"] == report.verdict == "partly"
    assert seed_sets(entry) == [list(range(8)), list(range(100, 108))]
    listing = {s.slug: s for s in list_studies(results)}["fair-coins"]
    assert (listing.verdict, listing.seed_sets, set(listing.claims.values())) == ("partly", 2, {"not settled"})


def test_claims_on_which_two_sets_of_seeds_agree_keep_their_verdict(registered, tmp_path):
    registered["study"] = seeded(lambda seed: 2.0 + 0.01 * (seed % 2), count=8)
    report = run_study_twice("fair-coins", "tiny", results=tmp_path / "R.json")
    assert report.verdict == "reproduced"
    assert settled_verdicts(read_results(tmp_path / "R.json")["fair-coins"]) == dict.fromkeys(
        ("gain", "trains"), "reproduced"
    )


def test_an_entry_of_one_set_of_seeds_is_still_read(tmp_path):
    path = tmp_path / "R.json"
    record_result({**entry_of(seeded(lambda seed: 2.0, count=8).run("tiny"), 1.0), "slug": "fair-coins"}, path)
    listing = {s.slug: s for s in list_studies(path)}["fair-coins"]
    assert (listing.verdict, listing.seed_sets) == ("reproduced", 1)
    assert listing.claims == {"gain": "reproduced", "trains": "reproduced"}


def test_sets_of_seeds_share_none(registered):
    registered["study"] = small = seeded(lambda seed: 1.0)
    with pytest.raises(ValueError, match=r"first_seeds must be at least 4 apart, got \(0, 3\)"):
        run_study_twice("fair-coins", "tiny", first_seeds=(0, 3))
    first, second = small.run("tiny"), small.run("tiny", seed=3)
    with pytest.raises(ValueError, match=r"other must be a run with other seeds, got \[3\] in both"):
        first.report(second)
    with pytest.raises(ValueError, match=r"must have no seed in common, got \[3\] in both"):
        entry_of_both(entry_of(first, 1.0), entry_of(second, 1.0))
    with pytest.raises(ValueError, match="must be runs of one study"):
        entry_of_both(entry_of(first, 1.0), entry_of(study().run("tiny"), 1.0))
    with pytest.raises(ValueError, match="other must be a run of 'fair-coins', got one of 'on-a'"):
        first.settled(study().run("tiny", seed=9))


VERDICTS = st.sampled_from(["reproduced", "partly", "refuted", "not tested"])


@given(st.lists(st.tuples(VERDICTS, VERDICTS), min_size=1, max_size=5))
def test_a_study_is_reproduced_only_if_all_that_is_tested_is_and_is_settled(pairs):
    settled = [settled_verdict(pair) for pair in pairs]
    assert all((verdict == "not settled") == (a != b) for verdict, (a, b) in zip(settled, pairs, strict=True))
    total = total_verdict(settled)
    tested = set(settled) - {"not tested"}
    for word in ("reproduced", "refuted"):
        assert (total == word) == (tested == {word})
    assert (total == "not tested") == (not tested)


def test_the_command_line_chooses_the_first_seed_and_lists_what_is_not_settled(registered, tmp_path, monkeypatch):
    from poise.cli import studies as commands

    registered["study"] = seeded(lambda seed: 2.0 - (4 if seed >= 100 else 0), count=8)
    app = typer.Typer()
    app.command()(commands.study)
    done = CliRunner().invoke(app, ["fair-coins", "--budget", "tiny", "--seed", "100", "--out", str(tmp_path / "o")])
    assert done.exit_code == 0, done.output
    entry = json.loads((tmp_path / "o" / "result.json").read_text(encoding="utf-8"))
    assert entry["provenance"]["seeds"] == list(range(100, 108))
    assert entry["verdict"] == "refuted"

    run_study_twice("fair-coins", "tiny", results=tmp_path / "R.json")
    record_result({**entry, "slug": "adamp"}, tmp_path / "R.json")
    listings = list_studies(tmp_path / "R.json")
    monkeypatch.setattr("poise.studies.list_studies", lambda: listings)
    app = typer.Typer()
    app.command()(commands.studies)
    lines = CliRunner().invoke(app, []).output.splitlines()
    (coins,) = (line for line in lines if line.startswith("fair-coins"))
    (one,) = (line for line in lines if line.startswith("adamp"))
    assert "partly  2 not settled" in coins
    assert "one set of seeds" not in coins
    assert "one set of seeds" in one


def test_one_failing_study_neither_hides_nor_stops_the_others(monkeypatch, tmp_path):
    from poise.studies.__main__ import main

    def load(slug):
        return replace(study(math.nan if slug == "fair-coins" else 1.0), slug=slug)

    monkeypatch.setattr("poise.studies.kit.runner.load_study", load)
    app = typer.Typer()
    app.command()(main)
    done = CliRunner().invoke(app, ["--budget", "tiny", "--results", str(tmp_path / "R.json")])
    assert done.exit_code == 1
    assert "failed: fair-coins" in done.output
    assert "cannot be judged" in done.output
    assert list(read_results(tmp_path / "R.json")) == [slug for slug in sorted(STUDIES) if slug != "fair-coins"]
    assert CliRunner().invoke(app, ["small-scale-proxies", "--results", str(tmp_path / "R.json")]).exit_code == 0


def test_unknown_study_offers_the_nearest_names():
    with pytest.raises(ValueError, match="'fair-coin'; did you mean fair-coins"):
        load_study("fair-coin")
    with pytest.raises(ValueError, match="slug must name a study"):
        run_study("zzz")


def test_targets_that_are_in_no_paper_have_a_citation_and_no_address():
    paper = Paper("Targets of a tool", "poise", 2026)
    assert (paper.url, paper.link) == ("", "poise (2026). Targets of a tool.")
    published = Paper("Layer Normalization", "Ba et al.", 2016, "1607.06450")
    assert published.link == f"[{published.citation}](https://arxiv.org/abs/1607.06450)"
