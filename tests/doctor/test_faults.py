"""A fault of the watch ends the watch, never the run."""

import torch
from torch import nn

from poise.doctor.probes.probe import Probe
from poise.doctor.remedies import parse_remedy
from poise.doctor.remedies.remedy import Remedy


def train(steps=6):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3)).mean().backward()
        optimizer.step()
    return model


MOMENTS = ("forward", "rectified", "model_inputs", "before_step", "after_step")


def test_a_probe_that_raises(watching, capfd):
    expected = train().state_dict()
    for moment in MOMENTS:

        def broken(self, *args):
            raise RuntimeError("two\nlines")

        probe = type("Broken", (Probe,), {moment: broken})
        with watching(probes=[probe]) as watched:
            model = train()
        assert watched.tap.fault == "RuntimeError: two lines"
        err = capfd.readouterr().err.splitlines()
        assert err == ["poise: the watch switched itself off (RuntimeError: two lines); the run goes on"]
        for name, value in model.state_dict().items():
            assert torch.equal(value, expected[name])


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
