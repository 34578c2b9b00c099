"""The audit of a closed loop: a pendulum held upright, with what can go wrong put in one at a time."""

import math

import numpy as np
import pytest
import torch

from poise.control import audit_closed_loop, lqr
from poise.control.closed_loop_audit.hull import Hull
from poise.control.closed_loop_audit.measure import measure

K = lqr([[0.0, 1.0], [10.0, -0.1]], [[0.0], [1.0]], torch.eye(2), torch.eye(1))
BOX = ([-1.0, -1.0], [1.0, 1.0])


def pendulum(x, u):
    return torch.stack([x[1], 10 * torch.sin(x[0]) - 0.1 * x[1] + u[0]])


def regulator(x):
    return -K @ x


def audit(plant=pendulum, controller=regulator, **more):
    return audit_closed_loop(plant, controller, **{"x0": [0.0, 0.0], "box": BOX, "dt": 0.02, "n_samples": 60} | more)


def facts(plant=pendulum, controller=regulator, **more):
    nothing = {"model": None, "train_states": None, "angles": (), "input_limits": None, "batched": False}
    given = nothing | {"x0": [0.0, 0.0], "box": BOX, "dt": 0.02, "n_samples": 60, "horizon": None, "seed": 0}
    return measure(plant, controller, **given | {"progress": False} | more)


def causes(report):
    return {finding.cause for finding in report.findings}


def test_a_regulator_holds_a_pendulum():
    report = audit()
    assert report.verdict == "stable at the goal"
    assert causes(report) == set()
    assert "not certified" in report.to_html()
    assert report.to_dict() == audit().to_dict()


def test_rates_and_margins_are_those_of_the_linear_loop():
    found = facts()
    A = torch.tensor([[0.0, 1.0], [10.0, -0.1]], dtype=torch.float64) - torch.tensor([[0.0], [1.0]]).double() @ K
    assert found.growth == pytest.approx(float(torch.linalg.eigvals(A).real.max()), rel=0.05)
    low, high = (-end / found.dt for end in reversed(found.measured_rate.ci))
    assert low - 0.05 <= found.growth <= high + 0.05
    # L = (k0 + k1 s) / (s^2 + 0.1 s - 10): the gain may fall to 10 / k0 before the constant term is zero.
    assert found.margins[0].gain_low == pytest.approx(10 / float(K[0, 0]), rel=1e-6)
    assert found.region.limited_by == "box"
    assert found.region.level > 0


def test_weak_actuators_fail_away_from_the_goal():
    report = audit(input_limits=([-4.0], [4.0]))
    assert report.verdict == "stable at the goal, not in all of the box"
    assert {"box_not_attracted", "input_saturation"} <= causes(report)
    found = facts(input_limits=([-4.0], [4.0]))
    # Held at rest at an angle of theta, the pendulum needs 10 sin(theta) <= 4.
    assert 0 < found.region.nearest_distance <= math.asin(0.4) + 1e-6
    assert found.saturated_failing > found.saturated


def test_the_wrong_sign_is_unstable_and_has_no_margins():
    report = audit(controller=lambda x: K @ x)
    assert report.verdict == "unstable at the goal"
    assert "unstable_at_goal" in causes(report)
    assert "it has none" in report.to_html()


def test_a_goal_that_needs_an_input():
    report = audit(x0=[0.3, 0.0], controller=lambda x: -K @ (x - torch.tensor([0.3, 0.0], dtype=torch.float64)))
    assert "goal_not_an_equilibrium" in causes(report)
    found = facts(x0=[0.3, 0.0], controller=lambda x: -K @ (x - torch.tensor([0.3, 0.0], dtype=torch.float64)))
    # 10 sin(theta) = k0 (theta - 0.3)
    theta = 0.3 + found.offset
    assert 10 * math.sin(theta) == pytest.approx(float(K[0, 0]) * (theta - 0.3), rel=1e-3)


def rippled(x, u):
    """Off by at most 0.02, with slopes up to 6."""
    return pendulum(x, u) + torch.stack([0 * x[0], 0.02 * torch.sin(300 * x[0])])


def test_a_good_fit_with_wrong_derivatives():
    report = audit(model=rippled, n_samples=100)
    assert "derivative_error" in causes(report)
    found = facts(model=rippled, n_samples=100).model
    assert found.r2 > 0.999
    assert found.derivative_error > 0.2
    assert facts(model=pendulum).model.derivative_error < 1e-6


def test_a_model_that_hides_an_instability():
    def calm(x, u):
        return torch.stack([x[1], -10 * torch.sin(x[0]) - 0.5 * x[1] + u[0]])

    report = audit(controller=lambda x: -0.1 * x[:1], model=calm)
    assert {"unstable_at_goal", "model_stable_plant_not"} <= causes(report)


def test_runs_that_leave_the_hull():
    ring = np.stack([f(np.linspace(0, 2 * np.pi, 40)) for f in (np.cos, np.sin)], 1)
    assert "left_training_hull" in causes(audit(train_states=0.2 * ring))
    inside = facts(train_states=20 * ring).hull
    assert inside.outside == inside.left == 0
    assert math.isnan(inside.first_exit)


def test_hull_of_a_triangle():
    hull = Hull(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), seed=0)
    states = np.array([[0.2, 0.2], [0.5, 0.5], [0.51, 0.5], [-0.01, 0.5], [1.0, 0.0]])
    assert hull.contains(states).tolist() == [True, True, False, False, True]


def test_numpy_functions_and_batches_give_the_same_numbers():
    def plain(x, u):
        x, u = np.asarray(x), np.asarray(u)
        return np.array([x[1], 10 * np.sin(x[0]) - 0.1 * x[1] + u[0]])

    def many(x, u):
        return torch.stack([x[:, 1], 10 * torch.sin(x[:, 0]) - 0.1 * x[:, 1] + u[:, 0]], 1)

    settings = {"n_samples": 6, "horizon": 1.0}
    base = facts(**settings)
    slow = facts(plain, lambda x: -K.numpy() @ np.asarray(x), **settings)
    together = facts(many, lambda x: -x @ K.mT, batched=True, **settings)
    for other in (slow, together):
        assert other.growth == pytest.approx(base.growth, rel=1e-6)
        np.testing.assert_allclose(other.paths, base.paths, rtol=1e-9, atol=1e-12)
    assert any("take one state at a time" in text for text in slow.not_checked)


def test_the_sampling_period_that_is_too_long():
    """x' = u with u = -4 x, held: the sampled loop 1 - 4 dt is stable up to a period of 0.5."""
    found = facts(lambda x, u: u, lambda x: -4.0 * x, x0=[0.0], box=([-1.0], [1.0]), dt=0.1, n_samples=5, horizon=5.0)
    assert found.period_factor == pytest.approx(5.0, rel=1e-6)
    assert found.margins[0].gain == pytest.approx(5.0, rel=1e-6)


def test_an_interrupted_audit_reports_what_is_there(monkeypatch):
    def interrupted(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr("poise.control.closed_loop_audit.measure.attracted_region", interrupted)
    report = audit()
    assert report.verdict == "stable at the goal"
    assert "the sampling was interrupted" in report.to_html()


def test_an_environment():
    gymnasium = pytest.importorskip("gymnasium")
    env = gymnasium.make("Pendulum-v1")
    # theta'' = 15 sin(theta) + 3 u
    gain = lqr([[0.0, 1.0], [15.0, 0.0]], [[0.0], [3.0]], torch.eye(2), torch.eye(1)).numpy()
    found = facts(
        env,
        lambda x: -gain @ np.asarray(x),
        box=([-0.2, -0.2], [0.2, 0.2]),
        dt=0.05,
        n_samples=5,
        horizon=2.0,
        angles=(0,),
    )
    assert found.local.verdict == "stable"
    assert found.region.fraction > 0
    assert found.saturated is not None
    assert found.period_factor is None


@pytest.mark.parametrize(
    ("changed", "kind", "message"),
    [
        ({"plant": lambda x, u: x[:1]}, ValueError, r"plant must return a vector of the shape of the state, \(2,\)"),
        ({"controller": lambda x: x[:1] * math.nan}, ValueError, "controller must return finite inputs"),
        ({"controller": lambda x: x[0]}, ValueError, "controller must return an input of shape"),
        ({"box": ([0.0, 0.0], [0.0, 1.0])}, ValueError, "box is empty"),
        ({"dt": 0.0}, ValueError, "dt must be positive"),
        ({"plant": 3}, TypeError, "plant must be a function"),
        ({"train_states": np.zeros((4, 3))}, ValueError, r"train_states must have shape \(samples, 2\)"),
        ({"input_limits": ([1.0], [0.0])}, ValueError, "input_limits must be"),
        ({"horizon": 0.001}, ValueError, "horizon must be finite"),
    ],
)
def test_bad_input(changed, kind, message):
    with pytest.raises(kind, match=message):
        audit(**changed)
