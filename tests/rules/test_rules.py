"""The frame of rules: look-ups, listings, findings, and what is refused."""

from __future__ import annotations

from itertools import pairwise

import pytest
from rich.console import Console

from poise.report import Evidence
from poise.rules import Catalogue, DocumentedRemedy, Rule, RuleSet, catalogue, explain, findings_of
from poise.rules.contents import contents


def small(value):
    if value >= 1:
        return []
    return [SMALL.finding("warning", 0.9, f"{value} is small.", evidence=[Evidence("value", value)])]


def negative(value):
    return [NEGATIVE.finding("error", 0.8, f"{value} is negative.", remedies=["absolute"])] if value < 0 else []


SMALL = Rule("small", "It is small", small, "Small.", remedies=("double=2", "absolute"), family="size")
NEGATIVE = Rule("negative", "It is negative", negative, "Negative.", exact=True, remedies=("absolute",), family="sign")
NUMBERS = RuleSet("numbers", "arithmetic", "`check`", (SMALL, NEGATIVE))
REMEDIES = {
    "double": DocumentedRemedy("double", "Double it", "Double it.\n\n## What it does\nIt doubles.", "live", "x *= 2\n"),
    "absolute": DocumentedRemedy("absolute", "Drop the sign", "Drop the sign.", "code", "x = abs(x)\n"),
}
KNOWN = Catalogue((NUMBERS, RuleSet("others", "geometry", "`look`", (SMALL,), ("size",))), REMEDIES)


def test_findings_come_worst_first_with_the_rules_id_and_remedies():
    first, second = findings_of(NUMBERS, -1.0)
    assert (first.cause, first.remedies) == ("negative", ("absolute",))
    assert (second.cause, second.remedies) == ("small", ("double=2", "absolute"))
    assert findings_of(NUMBERS, 5.0) == []


def test_a_finding_names_only_remedies_of_its_rule():
    with pytest.raises(ValueError, match=r"remedies of negative must be among .'absolute',., got .'double',."):
        NEGATIVE.finding("error", 0.5, "No.", remedies=["double"])


def test_look_ups_take_hyphens_and_offer_the_nearest():
    assert KNOWN.rules(" Small ") == [(KNOWN.rule_sets[0], SMALL), (KNOWN.rule_sets[1], SMALL)]
    assert KNOWN.ids == ["small", "negative"]
    assert KNOWN.remedy("ABSOLUTE").title == "Drop the sign"
    assert KNOWN.by_room("geometry") == [KNOWN.rule_sets[1]]
    assert KNOWN.by_family("sign") == [(NUMBERS, NEGATIVE)]
    for ask, message in (
        (lambda: KNOWN.rules("smal"), "rule 'smal' is unknown: did you mean small?"),
        (lambda: KNOWN.remedy("dubble"), "remedy 'dubble' is unknown: did you mean double?"),
        (lambda: KNOWN.by_room("algebra"), "room 'algebra' has no rules: "),
        (lambda: KNOWN.by_family("colour"), "family 'colour' is unknown: there are size, sign"),
    ):
        with pytest.raises(ValueError, match=message.replace("?", r"\?")):
            ask()


def test_a_rule_set_has_every_id_once_and_only_its_families():
    with pytest.raises(ValueError, match=r"'small'.* twice in 'both'"):
        RuleSet("both", "arithmetic", "`check`", (SMALL, SMALL))
    with pytest.raises(ValueError, match=r"families of 'sizes' must be among .*'negative': 'sign'"):
        RuleSet("sizes", "arithmetic", "`check`", (SMALL, NEGATIVE), ("size",))


def test_contents_are_one_list_or_by_family():
    groups = contents(KNOWN)
    assert [(group.chapter, group.heading) for group in groups[:2]] == [
        ("Numbers, found by `check`", ""),
        ("Others, found by `look`", "size"),
    ]
    assert groups[0].entries == [("small", "It is small"), ("negative", "It is negative")]
    assert [name for group in groups[2:] for name, _ in group.entries] == ["double", "absolute"]


def test_one_id_of_several_sets_is_explained_for_each():
    text = explain("dead-units")
    run, line, audit = map(text.index, ("found by `poise run`", "\n---\n", "found by `poise.preflight.audit_init`"))
    assert run < line < audit


def test_unknown_names_get_the_nearest_of_rules_and_remedies():
    with pytest.raises(ValueError, match="'warmpu' is neither a rule nor a remedy: did you mean warmup"):
        explain("warmpu")
    with pytest.raises(ValueError, match="did you mean small_residual_stream"):
        explain("small-residual-strem")


def test_the_listing_fits_eighty_columns(capsys, monkeypatch):
    from poise.cli.explain import explain as command

    monkeypatch.setattr("rich.console.Console", lambda: Console(width=80, color_system=None))
    command(None)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    for rules in catalogue().rule_sets:
        for rule in rules:
            two = [" ".join((a.rstrip(), b.strip())) for a, b in pairwise(lines) if a.startswith(f" {rule.id} ")]
            assert any(rule.title in both for both in two), f"{rule.title!r} takes more than two lines"
    for name in catalogue().remedies:
        assert any(line.startswith(f" {name} ") for line in lines)
