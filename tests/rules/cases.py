"""For every rule of an audit, facts in which it finds something, and facts next to them in which it does not."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from poise.control import AttractedRegion, Margins
from poise.control.closed_loop_audit.facts import ClosedLoopFacts, HullFacts, ModelFacts
from poise.dynamics import EdgeDistance, Map, critical_lr, sgd_stability, stability
from poise.dynamics.edge_of_stability.local_point import LocalPoint
from poise.dynamics.training_audit.facts import TrainingFacts
from poise.dynamics.training_audit.sharpness import AuditedSharpness
from poise.preflight.curvature_limit.usable_lr import UsableLR
from poise.preflight.init_audit.facts import InitFacts
from poise.preflight.perturbation_audit.facts import GridFacts
from poise.preflight.signal_propagation.cancelled_factor import CancelledFactor
from poise.preflight.signal_propagation.depth_growth import DepthGrowth, FailingDepth
from poise.preflight.signal_propagation.hidden_state_gain import HiddenStateGain
from poise.preflight.signal_propagation.norm_amplification import NormInput
from poise.preflight.signal_propagation.residual_stream import ResidualSum
from poise.preflight.signal_propagation.signal_propagation import (
    AttentionLogits,
    RectifiedUnits,
    SignalPropagation,
    Unit,
)
from poise.preflight.signal_propagation.sublayer_bound import SublayerBound


@dataclass(frozen=True)
class Case:
    """What a rule is tried on.

    Args:
        fires: facts in which it makes one finding.
        silent: facts in which it makes none.
        severity: of the finding.
    """

    fires: Any
    silent: Any
    severity: str


# --- before the first step


def units(absmax=(1.0, 1.0, 1.0), q=(1.0, 1.0, 1.0), grads=(1.0, 1.0, 1.0), cosines=(0.1, 0.1, 0.1)):
    return [
        Unit(f"blocks.{i}", torch.float32, size, largest, cosine, grad, grad, 1.0)
        for i, (largest, size, grad, cosine) in enumerate(zip(absmax, q, grads, cosines, strict=True))
    ]


def init(growth=None, failing=(), gains=(), bounds=(), lr=None, set_lr=None, eps=None, dtype="float32", **passed):
    """A network in which all is well, but for what is given."""
    signals = {"loss": 2.3, "units": units(), "are_blocks": True, "parameter_grads": {"w": 1e-2}, **passed}
    return InitFacts(
        model="Net",
        parameters=10,
        dtype=dtype,
        batch=4,
        passed=SignalPropagation(**signals),
        growth=DepthGrowth(0.0, 0.0, 1.0, None, 1.0) if growth is None else growth,
        failing=list(failing),
        gains=list(gains),
        bounds=list(bounds),
        lr=lr,
        no_lr=None,
        set_lr=set_lr,
        eps=eps,
        tied=False,
        seed=0,
    )


def slopes(forward=0.0, ratio=1.0):
    return DepthGrowth(forward, 0.0, ratio, None, 1.0)


def norm(amplification, degenerate=0.0, positions=()):
    return [NormInput("norm", 1 / amplification, amplification, degenerate, positions)]


def shortcuts(gain, ratio):
    return init(residuals=[ResidualSum(f"blocks.{i}", 1.0, 0.1, gain) for i in range(30)], growth=slopes(ratio=ratio))


def bounds(branch):
    return [SublayerBound("block", branch, 1.0, 1 + branch)]


def limit(name, cold, warmed=None):
    return UsableLR(name, 2 / cold, 0.0, True, 10, 4, cold, cold, warmed)


INIT = {
    "forward_nonfinite": Case(init(units=units(absmax=(1.0, math.inf, 1.0))), init(), "error"),
    "backward_nonfinite": Case(
        init(units=units(grads=(math.nan, 1.0, 1.0))),
        init(units=units(absmax=(1.0, math.inf, 1.0), grads=(math.nan, 1.0, 1.0))),  # the forward pass is to blame
        "error",
    ),
    "signal_growth": Case(
        init(units=units(q=(1.0, 11.0, 121.0)), growth=slopes(2.4)),
        init(units=units(q=(1.0, 9.0, 81.0)), growth=slopes(2.2)),
        "warning",
    ),
    "signal_decay": Case(
        init(units=units(q=(1.0, 1e-4, 1e-8)), growth=slopes(-9.2)),
        init(units=units(q=(1.0, 0.1, 0.011)), growth=slopes(-2.3)),
        "error",
    ),
    "exploding_gradients": Case(init(growth=slopes(ratio=1001.0)), init(growth=slopes(ratio=9.9)), "error"),
    "vanishing_gradients": Case(init(growth=slopes(ratio=0.0099)), init(growth=slopes(ratio=0.0101)), "warning"),
    "gradient_underflow": Case(
        init(failing=[FailingDepth("float16", "vanishes", 2, "blocks.1", 6e-8)], dtype="float16"),
        init(failing=[FailingDepth("float16", "vanishes", 20, None, 6e-8)]),  # beyond the model's depth
        "warning",
    ),
    "small_residual_stream": Case(
        init(norms=norm(50.0), embeddings={"tokens": 0.02}),
        init(norms=norm(4.9), embeddings={"tokens": 0.2}),
        "warning",
    ),
    "small_positions": Case(
        init(norms=norm(1.7, positions=(50.0, *[1.0] * 64)), vectors={"register": 0.02}),
        init(norms=norm(50.0, positions=(50.0,) * 65)),  # all are small
        "warning",
    ),
    "large_sublayer": Case(init(bounds=bounds(10.1)), init(bounds=bounds(9.9)), "info"),
    "cancelled_factor": Case(init(factors=[CancelledFactor("norm", 0.1)]), init(), "warning"),
    "shortcut_gain": Case(shortcuts(0.9, 0.04), shortcuts(0.99, 0.7), "warning"),
    "degenerate_norm": Case(init(norms=norm(1.0, degenerate=0.6)), init(norms=norm(1.0)), "warning"),
    "attention_logit_growth": Case(
        init(attention=[AttentionLogits("a", 51.0, 0.5)]), init(attention=[AttentionLogits("a", 49.0, 0.5)]), "warning"
    ),
    "dead_units": Case(
        init(rectified=[RectifiedUnits("relu", 0.95, 16)]),
        init(rectified=[RectifiedUnits("relu", 0.95, 15)]),  # of too few values
        "error",
    ),
    "indistinguishable_inputs": Case(
        init(units=units(cosines=(0.1, 0.5, 0.995))),
        init(units=units(cosines=(0.95, 0.99, 0.995))),  # they were alike from the start
        "warning",
    ),
    "hidden_state_gain": Case(
        init(gains=[HiddenStateGain("rnn", 50, 50 * math.log(1.2), 1.0)]),
        init(gains=[HiddenStateGain("rnn", 50, 50 * math.log(1.05), 1.0)]),
        "warning",
    ),
    "lr_above_curvature": Case(
        init(lr=limit("SGD", 0.1), set_lr=0.5), init(lr=limit("Adam", 0.1), set_lr=0.5), "error"
    ),
    "eps_dominates": Case(
        init(eps=1e-3, parameter_grads={"w": 9e-3}), init(eps=1e-3, parameter_grads={"w": 1.1e-2}), "warning"
    ),
    "orphan_parameters": Case(
        init(parameter_grads={"w": 1.0, "unused": None}), init(parameter_grads={"w": 1.0, "zero": 0.0}), "info"
    ),
}


# --- while training


def training(ratio=0.5, low=0.5, high=0.5, converged=True, noise=None):
    """A run whose sharpness is a known part of what its learning rate allows, with a range around it."""
    edge = 20.0
    return TrainingFacts(
        optimizer="SGD",
        lr=0.1,
        plain_sgd=True,
        batch_size=2,
        n=24,
        used=24,
        parameters=3,
        point=LocalPoint(0.0, 0.0, ()),
        plain=AuditedSharpness(ratio * edge, 0.0, converged, None, torch.ones(3)),
        preconditioned=None,
        distance=EdgeDistance(edge, ratio, low, high),
        largest_lr=(0.1 / high, 0.1 / ratio, 0.1 / low),
        density=None,  # no rule reads it
        directions={"weight": 1.0},
        noise=noise,
        no_noise=None,
        seed=0,
    )


def noise_at(part):
    """The stability of SGD with batches of 2, at a part of the largest learning rate that is stable with them."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(24, 3, generator=generator, dtype=torch.float64)
    model = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    data = x, model(x).detach()
    largest = critical_lr(model, nn.MSELoss(), data, batch_size=2, sampling="without")
    return sgd_stability(model, nn.MSELoss(), data, lr=part * largest, batch_size=2, exact=True)


TRAINING = {
    "above_edge_of_stability": Case(training(1.5, 1.4, 1.6), training(1.5, 0.9, 1.6), "error"),
    "at_edge_of_stability": Case(training(1.0, 0.99, 1.01), training(0.9, 0.89, 0.91), "warning"),
    "unstable_with_batch_noise": Case(training(noise=noise_at(1.05)), training(noise=noise_at(0.95)), "warning"),
    "sharpness_uncertain": Case(training(converged=False), training(), "warning"),
}


# --- perturbations


def grid(**last):
    """Ten steps of three seeds under each condition, from a loss of 1 to the given one; NaN: it diverged."""
    runs = {name: np.stack([np.linspace(1.0, end, 10)] * 3) for name, end in last.items()}
    return GridFacts({name.replace("__", "*"): run for name, run in runs.items()}, (0, 1, 2), 0.1, 10, 1, None)


PERTURBATION = {
    "does_not_survive_perturbation": Case(grid(base=0.0, lr__5=math.nan), grid(base=0.0, lr__5=0.2), "warning"),
}

# --- closed loops


def closed_loop(**changed):
    """A loop in which all is well, but for what is given."""
    facts = ClosedLoopFacts(
        n=2,
        m=1,
        dt=0.1,
        steps=100,
        offset=0.0,
        local=local(0.5),
        measured_rate=None,
        margins=(Margins(3.0, 1.0, 0.2, 1.0, 60.0, 1.0, 0.5, 1.0),),
        period_factor=4.0,
        region=attracted(1.0),
        saturated=0.0,
        saturated_failing=math.nan,
        model=ModelFacts(0.999, 0.01, -1.0, 1.0, 0.0),
        hull=HullFacts(24, 0.0, 0.0, math.nan, math.nan),
        paths=np.zeros((0, 0, 2)),
        not_checked=(),
        seed=0,
    )
    return replace(facts, **changed)


def local(multiplier, coupling=0.0):
    """The stability of a linear map with two equal multipliers."""
    matrix = torch.tensor([[multiplier, coupling], [0.0, 0.9 * multiplier]], dtype=torch.float64)
    return stability(Map(lambda x: matrix @ x), torch.zeros(2, dtype=torch.float64))


def attracted(fraction):
    good = torch.arange(100) < 100 * fraction
    nearest = None if fraction == 1 else torch.tensor([0.5, 0.2], dtype=torch.float64)
    distance = math.inf if fraction == 1 else 0.6
    states = torch.zeros(100, 2, dtype=torch.float64)
    interval = (max(0.0, fraction - 0.1), min(1.0, fraction + 0.1))
    return AttractedRegion(states, good, fraction, interval, nearest, distance, None, None, 0)


CLOSED_LOOP = {
    "unstable_at_goal": Case(closed_loop(local=local(1.2)), closed_loop(local=local(0.99)), "error"),
    "goal_not_an_equilibrium": Case(closed_loop(offset=0.1), closed_loop(offset=0.0), "warning"),
    "small_margin": Case(closed_loop(period_factor=1.5), closed_loop(period_factor=2.5), "warning"),
    "transient_growth": Case(closed_loop(local=local(0.9, 20.0)), closed_loop(local=local(0.9, 1.0)), "warning"),
    "box_not_attracted": Case(closed_loop(region=attracted(0.9)), closed_loop(region=attracted(1.0)), "warning"),
    "input_saturation": Case(
        closed_loop(saturated=0.3, saturated_failing=0.9), closed_loop(saturated=0.05, saturated_failing=0.9), "warning"
    ),
    "model_stable_plant_not": Case(
        closed_loop(local=local(1.2)),
        closed_loop(local=local(1.2), model=ModelFacts(0.99, 0.0, 1.0, 0.0, 0.0)),
        "error",
    ),
    "derivative_error": Case(
        closed_loop(model=ModelFacts(0.9995, 0.5, -1.0, 1.0, 0.0)),
        closed_loop(model=ModelFacts(0.9, 0.5, -1.0, 1.0, 0.0)),
        "warning",
    ),
    "left_training_hull": Case(
        closed_loop(hull=HullFacts(24, 0.1, 0.3, 0.5, 0.2)),
        closed_loop(hull=HullFacts(24, 0.02, 0.03, 0.5, 0.2)),
        "warning",
    ),
}

CASES = {
    "closed-loop audit": CLOSED_LOOP,
    "init audit": INIT,
    "training audit": TRAINING,
    "perturbation grid": PERTURBATION,
}
"""By name of the rule set, then by id."""
