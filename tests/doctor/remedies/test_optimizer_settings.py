"""adam_eps, beta2 and weight_decay: settings of an optimizer that last for the step only."""

import pytest
import torch
from torch.optim import SGD, Adafactor, AdamW

from poise.doctor.remedies import parse_remedy

from .helpers import assert_same, parameters, permanent, train, treated


def adamw(ps):
    return AdamW([{"params": ps[:1]}, {"params": ps[1:], "weight_decay": 0.0}], lr=0.1, betas=(0.8, 0.999), eps=1e-3)


@pytest.mark.parametrize("spec", ["adam_eps=1e-1", "beta2=0.6", "beta2=0", "weight_decay=0.5", "weight_decay=0"])
def test_equals_the_setting_in_the_script(spec):
    remedy = parse_remedy(spec)
    with treated(remedy):
        ours, _, optimizer = train(adamw)
    once, _ = permanent(remedy.code())

    def changed(ps):
        made = adamw(ps)
        once(made)
        return made

    theirs, _, _ = train(changed)
    plain, _, _ = train(adamw)
    assert_same(ours, theirs)
    assert not torch.allclose(ours[0], plain[0])
    assert optimizer.state_dict()["param_groups"] == adamw(parameters()).state_dict()["param_groups"]
    assert remedy.notes == []


def test_weight_decay_keeps_exempt_groups_exempt_unless_none_decays():
    with treated(parse_remedy("weight_decay=0.5")):
        ours, _, _ = train(adamw)
        everywhere, _, _ = train(lambda ps: SGD(ps, lr=0.1))
    plain, _, _ = train(adamw)
    torch.testing.assert_close(ours[1], plain[1], rtol=0, atol=0)
    assert_same(everywhere, train(lambda ps: SGD(ps, lr=0.1, weight_decay=0.5))[0])


def test_beta2_leaves_a_beta1_that_the_script_moves():
    def cycle(optimizer):
        for group in optimizer.param_groups:
            group["betas"] = (group["betas"][0] * 0.95, group["betas"][1])

    with treated(parse_remedy("beta2=0.9")):
        ours, _, optimizer = train(adamw, 5, every_step=cycle)

    def cycle_and_set(optimizer):
        for group in optimizer.param_groups:
            group["betas"] = (group["betas"][0] * 0.95, 0.9)

    theirs, _, _ = train(adamw, 5, every_step=cycle_and_set)
    assert_same(ours, theirs)
    assert optimizer.param_groups[0]["betas"] == (pytest.approx(0.8 * 0.95**5), 0.999)


def test_tensor_betas_stay_tensors():
    seen = []
    (p,) = parameters()[:1]
    given = (torch.tensor(0.9), torch.tensor(0.999))
    optimizer = AdamW([p], lr=torch.tensor(0.1), betas=given, foreach=False, capturable=True)
    betas = optimizer.param_groups[0]["betas"]
    remedy = parse_remedy("beta2=0.5")
    remedy.before_step(optimizer, None)
    seen.append(optimizer.param_groups[0]["betas"])
    remedy.after_step(optimizer)
    assert seen[0][0] is betas[0]
    assert isinstance(seen[0][1], torch.Tensor)
    assert seen[0][1].item() == 0.5
    assert optimizer.param_groups[0]["betas"] is betas


@pytest.mark.parametrize(("spec", "word"), [("beta2", "betas"), ("adam_eps", "eps")])
def test_an_optimizer_without_the_setting_is_noted_once_and_trained_as_before(spec, word):
    remedy = parse_remedy(spec)
    plain, _, _ = train(lambda ps: SGD(ps, lr=0.1))
    with treated(remedy):
        ours, _, _ = train(lambda ps: SGD(ps, lr=0.1))
    assert_same(ours, plain, 0)
    assert len(remedy.notes) == 1
    assert f"SGD has no {word}" in remedy.notes[0]


def test_adafactors_pair_of_eps_is_left_alone():
    remedy = parse_remedy("adam_eps=1e-3")
    with treated(remedy):
        _, _, optimizer = train(lambda ps: Adafactor(ps))
    assert optimizer.param_groups[0]["eps"] == Adafactor(parameters()).param_groups[0]["eps"]
    assert "Adafactor" in remedy.notes[0]
