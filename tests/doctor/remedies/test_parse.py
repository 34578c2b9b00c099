"""Names and values as the command line takes them."""

import importlib
import re
from pathlib import Path

import pytest
import torch

import poise.doctor.remedies as room
from poise.doctor.remedies import REMEDIES, parse_remedy

SECTIONS = ["What it does", "When it helps", "What it costs", "Making it permanent", "References"]


@pytest.mark.parametrize("name", REMEDIES)
def test_every_remedy_is_documented_like_a_rule_and_has_code(name):
    module = importlib.import_module(f"poise.doctor.remedies.{name}")
    assert re.findall(r"^## (.+)$", module.__doc__, re.MULTILINE) == SECTIONS
    compile(parse_remedy(name).code(), name, "exec")
    assert parse_remedy(name).value == REMEDIES[name].default


@pytest.mark.parametrize("name", REMEDIES)
def test_specs_round_trip_and_hyphens_are_underscores(name):
    remedy = parse_remedy(name)
    again = parse_remedy(remedy.spec.replace("_", "-"))
    assert type(again) is type(remedy)
    assert again.value == remedy.value
    assert again.spec == remedy.spec


@pytest.mark.parametrize(
    ("given", "spec"),
    [
        ("lr_scale=0.3", "lr_scale=0.3"),
        ("LR-Scale=10", "lr_scale=10"),
        ("warmup=250.0", "warmup=250"),
        ("adam-eps=1e-15", "adam_eps=1e-15"),
        ("weight_decay=0", "weight_decay=0"),
    ],
)
def test_specs(given, spec):
    assert parse_remedy(given).spec == spec


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("lr_scale=0", "a number above 0, got 0.0"),
        ("lr_scale=-1", "a number above 0"),
        ("lr_scale=nan", "a number above 0, got nan"),
        ("lr_scale=inf", "a number above 0, got inf"),
        ("lr_scale=", "a number above 0, got ''"),
        ("lr_scale=fast", "got 'fast'"),
        ("warmup=0", "a whole number of at least 1"),
        ("warmup=2.5", "a whole number of at least 1"),
        ("beta2=1", "a number of at least 0 and below 1"),
        ("beta2=-0.1", "a number of at least 0 and below 1"),
        ("weight_decay=-0.1", "a number of at least 0"),
        ("clip_grad_norm=0", "a number above 0"),
        ("clip_update_rms=0", "a number above 0"),
        ("adam_eps=0", "a number above 0"),
        ("z_loss=0", "a number above 0"),
        ("logit_soft_cap=-30", "a number above 0"),
        ("qk_norm=0", "a number above 0"),
        ("skip_bad_batches=1", "a number above 1"),
    ],
)
def test_bad_values_are_named_with_what_is_wanted(spec, wanted):
    name = spec.partition("=")[0]
    with pytest.raises(ValueError, match=f"value of remedy {name} must be .*{re.escape(wanted)}"):
        parse_remedy(spec)


@pytest.mark.parametrize(
    ("spec", "near"),
    [("lr_scal", "lr_scale"), ("clip-norm", "clip_grad_norm"), ("zloss=1", "z_loss"), ("beta", "beta2")],
)
def test_unknown_names_offer_the_nearest(spec, near):
    with pytest.raises(ValueError, match=f"unknown: did you mean .*{near}"):
        parse_remedy(spec)


def test_names_like_nothing_offer_all():
    with pytest.raises(ValueError, match=r"there are .*lr_scale.*skip_bad_batches"):
        parse_remedy("xylophone")


@pytest.mark.parametrize("value", ["0.3", True, None])
def test_only_numbers_are_values(value):
    if value is None:
        assert REMEDIES["lr_scale"](value).value == REMEDIES["lr_scale"].default
        return
    with pytest.raises(TypeError, match="lr_scale must be a number above 0"):
        REMEDIES["lr_scale"](value)


def test_every_file_of_a_remedy_is_listed():
    frame = {"__init__", "remedy", "group_values", "documented"}
    files = {path.stem for path in Path(room.__file__).parent.glob("*.py")} - frame
    assert files == set(REMEDIES)


def test_hooks_that_a_remedy_does_not_need_do_nothing():
    remedy = parse_remedy("lr_scale")
    a, b, c = torch.randn(3, 1, 2, 4, 4)
    plain = torch.nn.functional.scaled_dot_product_attention
    assert torch.equal(remedy.attention(plain, a, b, c, is_causal=True), plain(a, b, c, is_causal=True))
    assert torch.equal(remedy.attention_softmax(torch.softmax, a, -1), torch.softmax(a, -1))
    target = torch.tensor([1])
    loss = torch.nn.functional.cross_entropy
    assert torch.equal(remedy.cross_entropy(loss, a[:, 0, 0], target), loss(a[:, 0, 0], target))
