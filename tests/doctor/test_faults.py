"""A fault of the watch ends the watch, never the run."""

from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from poise.doctor.budget import Budget
from poise.doctor.probes.probe import Probe
from poise.doctor.remedies import parse_remedy
from poise.doctor.remedies.remedy import Remedy
from poise.doctor.tap.amp import AmpHooks
from poise.doctor.tap.backward import BackwardHooks
from poise.doctor.tap.checkpoints import CheckpointHooks
from poise.doctor.tap.compile import CompileHooks
from poise.doctor.tap.forward import ForwardHooks
from poise.doctor.tap.guard import guarded
from poise.doctor.tap.interval import Interval
from poise.doctor.tap.loss import LossHooks
from poise.doctor.tap.step import StepHooks
from poise.doctor.tap.tap import Tap
from poise.doctor.tap.treatment import Treatment


def assert_equal(state, expected):
    assert all(torch.equal(value, expected[name]) for name, value in state.items())


def train(steps=6):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3)).mean().backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("hook", ["forward", "rectified", "model_inputs", "before_step", "after_step"])
def test_a_probe_that_raises(hook, watching, capfd):
    def broken(self, *args):
        raise RuntimeError("two\nlines")

    expected = train().state_dict()
    probe = type("Broken", (Probe,), {hook: broken})
    with watching(probes=[probe]) as watched:
        model = train()
    assert watched.tap.fault == "RuntimeError: two lines"
    err = capfd.readouterr().err.splitlines()
    assert err == ["poise: the watch switched itself off (RuntimeError: two lines); the run continues"]
    assert_equal(model.state_dict(), expected)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x):
        x = torch.relu(self.inner(x)).softmax(0).view(-1, 1, 3, 2)
        return F.scaled_dot_product_attention(x, x, x).flatten(1)


def train_with_everything(folder):
    """Reach every hook of the watch."""
    torch.manual_seed(0)
    model = Attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=2)
    for i in range(4):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(torch.randn(4, 6)), torch.arange(4))
        loss.register_hook(lambda gradient: gradient)
        scaler.scale(loss * (torch.inf if i == 2 else 1)).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        with torch.no_grad():
            F.cross_entropy(model(torch.ones(4, 6)), torch.arange(4))
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder / "checkpoint.pt")
    checkpoint = torch.load(folder / "checkpoint.pt")
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    return torch.compile(model, backend="eager")


def broken(self, *args):
    raise RuntimeError("broken")


GROUPS = (AmpHooks, BackwardHooks, CheckpointHooks, CompileHooks, ForwardHooks, LossHooks, StepHooks)
GUARDED = [
    (group, name)
    for group in GROUPS
    for name, method in vars(group).items()
    if getattr(method, "__code__", None) is guarded(broken).__code__
]


@pytest.mark.parametrize(("group", "name"), GUARDED, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_a_fault_in_any_hook_ends_the_watch_and_not_the_run(group, name, watching, monkeypatch, tmp_path, capfd):
    expected = train_with_everything(tmp_path).state_dict()
    monkeypatch.setattr(getattr(group, name).__wrapped__, "__code__", broken.__code__)
    with watching(remedies=[parse_remedy("lr_scale=1")]) as watched:  # without one, a hook is left out
        watched.tap.between_steps = lambda: None
        model = train_with_everything(tmp_path)
    assert_equal(model.state_dict(), expected)
    assert watched.tap.fault == "RuntimeError: broken"
    line = "poise: the watch switched itself off (RuntimeError: broken); the run continues"
    assert capfd.readouterr().err.splitlines() == [line]


def test_a_process_that_only_applies_remedies_runs_through(tmp_path, capfd):
    expected = train_with_everything(tmp_path).state_dict()

    class Broken(Remedy):
        name = "broken"
        default = 1.0

        def after_step(self, optimizer):
            raise RuntimeError("no")

    with Tap(None, [], Budget(), [Broken()]).installed():
        model = train_with_everything(tmp_path)
    assert_equal(model.state_dict(), expected)
    assert capfd.readouterr().err == "poise: remedy broken=1 failed and was dropped (RuntimeError: no)\n"


def test_remedies_that_acted_before_one_failed_undo_what_they_did():
    class Broken(Remedy):
        name = "broken"
        default = 1.0

        def before_step(self, optimizer, loss):
            assert optimizer.param_groups[0]["lr"] == 0.05
            raise RuntimeError("no")

    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    told = []
    treatment = Treatment([parse_remedy("lr_scale=0.5"), Broken()], lambda *what: told.append(what))
    treatment.before_step(optimizer, Interval())
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert treatment.remedies == ()
    assert told == [("lr_scale=0.5, broken=1", "no")]


def test_remedies_of_a_failed_watch_are_given_no_old_loss(watching):
    class Listener(Remedy):
        name = "listener"
        default = 1.0
        heard: ClassVar[list] = []

        def before_step(self, optimizer, loss):
            self.heard.append(loss)

    probe = type("Broken", (Probe,), {"after_step": broken})
    with watching(probes=[probe], remedies=[Listener()]):
        train(3)
    assert [loss is None for loss in Listener.heard] == [False, True, True]


def test_a_run_file_that_takes_no_more_does_not_stop_the_run(watching):
    with watching() as watched:
        train(3)
        watched.tap.recorder.writer.close()
        train(3)
    assert watched.tap.fault is None
    assert watched.tap.counts["step"] == 6


def test_a_remedy_that_raises_is_dropped(watching, capfd):
    class Broken(Remedy):
        name = "broken"
        default = 1.0

        def before_step(self, optimizer, loss):
            raise RuntimeError("no")

    expected = train().state_dict()
    with watching(remedies=[Broken()]) as watched:
        model = train()
    assert torch.equal(model.state_dict()["0.weight"], expected["0.weight"])
    assert "remedy broken=1 failed and was dropped" in capfd.readouterr().err
    assert [e.payload["remedies"] for e in watched.record.events("remedy_failed")] == ["broken=1"]


def test_the_recorded_learning_rate_is_the_treated_one(watching):
    with watching(remedies=[parse_remedy("lr_scale=0.5")]) as watched:
        train()
    assert set(watched["lr"].values) == {0.05}
