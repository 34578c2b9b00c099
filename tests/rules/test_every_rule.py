"""Every rule and remedy of the catalogue: documented, explained, tried where it finds something and where not."""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

import poise
from poise.report import Finding
from poise.rules import catalogue, explain
from poise.rules.documented_remedy import KINDS
from poise.rules.documented_remedy import SECTIONS as REMEDY_SECTIONS
from poise.rules.rule import SECTIONS as RULE_SECTIONS

from ..doctor.causes.synthetic import FAULTS, healthy, sick
from .cases import CASES

KNOWN = catalogue()
RULES = {f"{rules.name}: {rule.id}": (rules, rule) for rules in KNOWN.rule_sets for rule in rules}
REMEDIES = list(KNOWN.remedies.values())


def sections(doc):
    """Return heading -> text of a docstring, in order."""
    parts = re.split(r"^## (.+)\n", doc, flags=re.MULTILINE)
    return dict(zip(parts[1::2], (text.strip() for text in parts[2::2]), strict=True))


def present_and_absent(rules, rule):
    """Return facts in which a rule finds something, and facts in which it does not."""
    if rules.name == "causes":
        return sick(rule.id), healthy().record()
    case = CASES[rules.name][rule.id]
    return case.fires, case.silent


def test_every_rule_has_a_case_and_no_case_is_left_over():
    assert {rules.name: {rule.id for rule in rules} for rules in KNOWN.rule_sets} == {
        "causes": set(FAULTS),
        **{name: set(cases) for name, cases in CASES.items()},
    }


def files_with(pattern):
    """Return the modules of poise that have a line of this form."""
    room = Path(poise.__file__).parent
    sources = {path: path.read_text(encoding="utf-8") for path in room.rglob("*.py")}
    return {
        ".".join(("poise", *path.relative_to(room).with_suffix("").parts))
        for path, text in sources.items()
        if re.search(pattern, text, re.MULTILINE)
    }


def test_the_catalogue_has_every_rule_and_remedy_that_a_file_holds():
    found = files_with(r"^\w+(: .+)? = (Rule|Cause)\(")
    found = {name for name in found if not name.startswith("poise.studies.")}  # a study's rule decides a verdict
    assert found == {rule.find.__module__ for _, rule in RULES.values()}
    documented = files_with(r"^\w+(: .+)? = DocumentedRemedy\(")
    assert {name.rpartition(".")[2] for name in documented} == {r.name for r in REMEDIES if r.kind != "live"}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_documented(name):
    _, rule = RULES[name]
    found = sections(rule.doc)
    assert tuple(found) == RULE_SECTIONS
    assert all(found.values()), "a section is empty"
    assert all(line.startswith(("- ", "  ")) for line in found["References"].splitlines())
    first = rule.doc.strip().partition("\n")[0]
    assert first.endswith("."), first
    assert rule.family
    assert len(rule.title) <= 55


@pytest.mark.parametrize("name", RULES)
def test_a_rule_lies_in_a_file_of_its_name(name):
    rules, rule = RULES[name]
    module = importlib.import_module(rule.find.__module__)
    assert module.__name__.rpartition(".")[2] == rule.id
    assert module.__name__.startswith(f"poise.{rules.room}.")
    assert module.__doc__ == rule.doc
    assert rule in (getattr(module, "RULE", None), getattr(module, "CAUSE", None))


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_explained_with_its_remedies(name):
    _, rule = RULES[name]
    text = explain(rule.id.replace("_", "-"))
    assert f"# {rule.title}\n" in text
    for heading, body in sections(rule.doc).items():
        assert f"## {heading}\n{body}" in text
    for remedy in rule.remedy_names:
        assert f"{KNOWN.remedy(remedy).title}\n" in text


@pytest.mark.parametrize("name", RULES)
def test_a_rule_finds_what_is_there_and_is_silent_otherwise(name):
    rules, rule = RULES[name]
    present, absent = present_and_absent(rules, rule)
    assert rule.find(absent) == []
    (finding,) = rule.find(present)
    assert finding.cause == rule.id
    assert finding.summary.endswith(".")
    assert {spec.partition("=")[0] for spec in finding.remedies} <= set(rule.remedy_names)
    assert Finding.from_dict(json.loads(json.dumps(finding.to_dict(), allow_nan=False))).summary == finding.summary
    assert [f.to_dict() for f in rule.find(present)] == [finding.to_dict()], "a rule must be pure"


@pytest.mark.parametrize("name", [name for name, (rules, _) in RULES.items() if rules.name in CASES])
def test_a_rule_of_an_audit_is_as_grave_as_it_says(name):
    rules, rule = RULES[name]
    case = CASES[rules.name][rule.id]
    assert [finding.severity for finding in rule.find(case.fires)] == [case.severity]


@pytest.mark.parametrize("facts", [next(iter(cases.values())).fires for cases in CASES.values()], ids=list(CASES))
def test_facts_are_frozen(facts):
    with pytest.raises(AttributeError):
        setattr(facts, fields(facts)[0].name, None)


@pytest.mark.parametrize("remedy", REMEDIES, ids=lambda remedy: remedy.name)
def test_a_remedy_is_documented_and_explained(remedy):
    found = sections(remedy.doc)
    assert tuple(found) == REMEDY_SECTIONS
    assert all(found.values()), "a section is empty"
    assert remedy.kind in KINDS
    assert not remedy.title.endswith(".")
    assert remedy.doc.strip().partition("\n")[0] == f"{remedy.title}."
    assert remedy.code.strip()
    text = explain(remedy.name.replace("_", "-"))
    assert remedy.code.strip() in text
    named_by = {rule.id for _, rule in RULES.values() if remedy.name in rule.remedy_names}
    assert set(re.findall(r"`(\w+)`", text.rpartition("## Named by")[2] if named_by else "")) == named_by


def test_every_remedy_that_a_rule_names_is_in_the_catalogue():
    named = {name for _, rule in RULES.values() for name in rule.remedy_names}
    assert named <= set(KNOWN.remedies)


def test_a_remedy_has_no_name_of_a_rule():
    assert not set(KNOWN.remedies) & set(KNOWN.ids), "`poise explain` would not know which is meant"


@pytest.mark.parametrize("remedy", [r for r in REMEDIES if r.language == "python"], ids=lambda remedy: remedy.name)
def test_the_code_of_a_remedy_is_python(remedy):
    compile(remedy.code, remedy.name, "exec")
