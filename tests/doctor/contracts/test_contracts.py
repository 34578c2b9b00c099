"""Each broken contract is named first, and the training next to it that keeps the contract is silent."""

from __future__ import annotations

import pytest
import torch

from poise.doctor.causes import CAUSES
from poise.doctor.diagnose import diagnose

from .cases import CASES, cause_of


def contracts():
    return {cause.id for cause in CAUSES.values() if cause.family == "contract"}


def findings(case, broken, watching, overhead=1.0):
    torch.manual_seed(0)
    with watching(overhead) as watched:
        case(broken)
    assert watched.tap.fault is None
    return diagnose(watched.record)


def test_every_contract_has_a_case():
    assert {cause_of(name, CAUSES) for name in CASES} >= contracts()


@pytest.mark.parametrize("name", CASES)
def test_a_broken_contract_is_named_first(name, watching):
    found = findings(CASES[name], True, watching)
    assert [f.cause for f in found][:1] == [cause_of(name, CAUSES)]
    assert found[0].severity != "info"


@pytest.mark.parametrize("name", CASES)
def test_a_kept_contract_is_silent(name, watching):
    found = findings(CASES[name], False, watching)
    assert [f for f in found if f.severity != "info" or f.cause in contracts()] == []


@pytest.mark.parametrize("name", CASES)
def test_a_contract_does_not_depend_on_the_budget(name, watching):
    """With next to no budget few steps are sampled; the facts are the same."""
    poor = [f for f in findings(CASES[name], True, watching, overhead=1e-6) if f.cause == cause_of(name, CAUSES)]
    assert poor
