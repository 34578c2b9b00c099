"""Attracted regions: systems whose boundary is known, and invariances."""

import math

import numpy as np
import pytest
import torch

from poise.control import attracted_region, rk4_step, state_difference

STRETCH = torch.tensor([1.0, 2.0], dtype=torch.float64)


def U(x):
    """An ellipse."""
    return ((STRETCH * x) ** 2).sum(-1)


def step(x):
    """One period of x' = (U - 1) grad U: exactly the states with U < 1 are attracted."""

    def velocity(x, u):
        return (U(x) - 1)[:, None] * 2 * STRETCH**2 * x

    return rk4_step(velocity, x, x, 0.05)


def round_level(x):
    return (x**2).sum(-1)


BOX = ([-1.5, -1.5], [1.5, 1.5])


def region(level, **more):
    return attracted_region(step, [0.0, 0.0], BOX, steps=100, n_samples=200, level=level, **more)


@pytest.mark.parametrize("level", [U, round_level])
def test_no_claimed_state_lies_beyond_the_boundary(level):
    found = region(level)
    assert found.limited_by == "failing start"
    rng = np.random.default_rng(1)
    points = torch.as_tensor(rng.uniform(-1.5, 1.5, (400_000, 2)))
    claimed = points[level(points) < found.level][:10_000]
    assert len(claimed) == 10_000
    assert int((U(claimed) > 1).sum()) == 0
    exact = 1.0 if level is U else 0.25  # the largest circle in the ellipse
    assert found.level == pytest.approx(exact, rel=0.02)
    for i in range(len(found.states)):
        assert bool(found.attracted[i]) == (float(U(found.states[i])) < 1) or abs(float(U(found.states[i])) - 1) < 0.02


def test_scaling_the_level_function_changes_nothing():
    base = region(round_level)
    for factor in (1e-8, 1e8):
        scaled = region(lambda x, factor=factor: factor * round_level(x) + 7 * factor)
        assert scaled.level == pytest.approx(factor * base.level, rel=1e-6)
        assert torch.equal(scaled.attracted, base.attracted)


def test_fraction_and_nearest_failing_state():
    found = region(None)
    exact = math.pi / 2 / 9  # area of the ellipse in that of the box
    assert found.interval[0] <= exact <= found.interval[1]
    assert found.level is None
    # On the line to the nearest sampled failing start the boundary was bisected.
    assert float(U(found.nearest_failing)) == pytest.approx(1, abs=0.01)
    assert found.nearest_distance == pytest.approx(float(found.nearest_failing.norm()) / 1.5)


def test_a_contraction_attracts_everything_and_the_box_ends_the_level_set():
    found = attracted_region(lambda x: 0.5 * x, [0.0, 0.0], BOX, steps=20, level=round_level, n_samples=100)
    assert found.fraction == 1.0
    assert found.interval[0] == pytest.approx(0.025 ** (1 / 100))
    assert found.nearest_failing is None
    assert found.nearest_distance == math.inf
    assert found.limited_by == "box"
    assert found.level == pytest.approx(1.5**2, rel=0.02)


def test_an_unstable_goal_has_no_level_set():
    found = attracted_region(lambda x: 1.5 * x, [0.0, 0.0], BOX, steps=60, level=round_level, n_samples=50)
    assert found.fraction == 0.0
    assert found.nearest_distance < 1e-3
    assert found.level is None or found.level < 1e-6


def test_angles_go_the_shorter_way():
    pi = torch.tensor([math.pi, 0.0])
    assert torch.equal(state_difference(pi, -pi, [0]), torch.zeros(2))
    assert torch.equal(state_difference(pi, -pi), 2 * pi)
    three = torch.tensor([3.0, 1.0]), torch.tensor([-3.0, 1.0])
    torch.testing.assert_close(state_difference(*three, [0]), torch.tensor([6 - 2 * math.pi, 0.0]))
    turned = attracted_region(
        lambda x: x + torch.tensor([0.0, 0.0]) - torch.cat([0.2 * torch.sin(x[:, :1]), 0.2 * x[:, 1:]], 1),
        [0.0, 0.0],
        ([-7.0, -1.0], [7.0, 1.0]),
        steps=200,
        n_samples=60,
        angles=[0],
    )
    assert turned.fraction == 1.0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"box": ([0.0, -1.0], [0.0, 1.0])}, "box is empty: entry 0 runs from 0 to 0"),
        ({"box": ([1.0, 1.0], [2.0, 2.0])}, "goal must lie in the box"),
        ({"box": ([-1.0], [1.0])}, "box must hold two states"),
        ({"goal": [math.nan, 0.0]}, "must be finite"),
        ({"step": lambda x: x[:, :1]}, r"step must return the shape it takes, \(5, 2\)"),
        ({"level": lambda x: x}, "level must return one number a state"),
        ({"n_samples": 0}, "n_samples, steps and tolerance"),
        ({"angles": [2]}, "angles must be indices of a state of 2 entries"),
    ],
)
def test_bad_input(changed, message):
    given = {"step": lambda x: x, "goal": [0.0, 0.0], "box": BOX, "steps": 1, "n_samples": 5} | changed
    with pytest.raises(ValueError, match=message):
        attracted_region(given.pop("step"), given.pop("goal"), given.pop("box"), **given)
