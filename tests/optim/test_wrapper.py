import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import OneCycleLR

from poise.optim import SAM, OptimizerWrapper, OrthoGrad


class Twice(OptimizerWrapper):
    """Steps twice, and counts."""

    def __init__(self, optimizer):
        super().__init__(optimizer)
        self.count = 0
        self.add_group_settings(times=2)

    @torch.no_grad()
    def step(self, closure=None):
        self.count += 1
        for _ in range(self.param_groups[0]["times"]):
            self.optimizer.step()

    def own_state(self):
        return {"count": self.count}

    def load_own_state(self, state):
        self.count = state["count"]


def wrapped(lr=0.1):
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    inner = AdamW([p], lr)
    return p, inner, Twice(inner)


def test_groups_state_and_defaults_are_the_wrapped_optimizers_objects_at_every_moment():
    p, inner, wrapper = wrapped()

    def shared():
        return all(getattr(wrapper, name) is getattr(inner, name) for name in ("param_groups", "state", "defaults"))

    assert shared()
    wrapper.step()
    assert shared()
    assert inner.state[p]["step"] == 2
    inner.load_state_dict(inner.state_dict())
    assert shared()
    wrapper.load_state_dict(wrapper.state_dict())
    assert shared()
    assert isinstance(wrapper, torch.optim.Optimizer)


def test_own_state_survives_and_the_wrapped_optimizer_alone_can_load_it():
    _, inner, wrapper = wrapped()
    wrapper.step()
    wrapper.param_groups[0]["times"] = 5
    state = wrapper.state_dict()
    assert set(state) == {"state", "param_groups", "Twice"}
    _, other_inner, other = wrapped()
    other.load_state_dict(state)
    assert other.count == 1
    assert other.param_groups[0]["times"] == 5
    other_inner.load_state_dict(state)
    fresh = wrapped()[2]
    plain = AdamW([nn.Parameter(torch.ones(3))])
    fresh.load_state_dict(plain.state_dict())  # from before it was wrapped
    assert fresh.param_groups[0]["times"] == 2
    assert fresh.count == 0
    assert inner.state


def test_wrappers_can_be_nested():
    def make(p):
        return SAM(OrthoGrad(SGD([p], 0.1, momentum=0.9)), rho=lambda t: 0.1 * t)

    p = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = make(p)

    def closure():
        optimizer.zero_grad()
        loss = (p[0] - 3) ** 2 + p[1] ** 2
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert optimizer.param_groups[0]["rho"] == pytest.approx(0.2)
    again = make(nn.Parameter(p.detach().clone()))
    again.load_state_dict(optimizer.state_dict())
    assert again.steps == 3
    assert again.state[again.param_groups[0]["params"][0]]["momentum_buffer"].any()


def test_one_cycle_reaches_the_momentum_of_the_wrapped_optimizer():
    _, inner, wrapper = wrapped()
    schedule = OneCycleLR(wrapper, 1.0, total_steps=5)
    wrapper.step()
    schedule.step()
    assert inner.param_groups[0]["betas"][0] != 0.9
    assert schedule.get_last_lr()[0] == inner.param_groups[0]["lr"]


def test_groups_added_to_either_one_get_the_wrappers_settings():
    _, inner, wrapper = wrapped()
    wrapper.add_param_group({"params": [nn.Parameter(torch.ones(1))], "times": 7})
    inner.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    assert [group["times"] for group in wrapper.param_groups] == [2, 7, 2]


def test_only_optimizers_can_be_wrapped():
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer, got list"):
        Twice([nn.Parameter(torch.ones(1))])
