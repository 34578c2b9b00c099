"""For every rule of an audit, facts in which it finds something, and facts next to them in which it does not."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from poise.causal import AverageEffect
from poise.causal.effect_audit.facts import ConstantComparison, EffectFacts, Flip, Overlap
from poise.continual import AccuracyHistory
from poise.continual.update_audit.facts import UNTREATED, Conflict, UpdateFacts, UpdateRun
from poise.control import AttractedRegion, Margins
from poise.control.closed_loop_audit.facts import ClosedLoopFacts, HullFacts, ModelFacts
from poise.dynamics import EdgeDistance, Map, critical_lr, sgd_stability, stability
from poise.dynamics.edge_of_stability.local_point import LocalPoint
from poise.dynamics.training_audit.facts import TrainingFacts
from poise.dynamics.training_audit.sharpness import AuditedSharpness
from poise.evidence import Overlap as WeightOverlap
from poise.loops.augmentation_audit.facts import AugmentationFacts
from poise.loops.loop_audit.facts import LoopFacts
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
from poise.recsys import RankListSensitivity
from poise.recsys.recommender_audit.facts import Arm, RecommenderFacts
from poise.sensitivity.churn import Churn
from poise.sensitivity.retraining_audit.facts import RetrainingFacts
from poise.shift import ChunkEstimate, MetricEstimate
from poise.shift.deployment_audit.facts import AuditedMetric, DeploymentFacts, InputDrift


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

# --- recommenders


def alike(jaccard, users=20):
    """Lists of which this part stays for every user."""
    values = np.full(users, jaccard) if np.isscalar(jaccard) else np.asarray(jaccard, float)
    return RankListSensitivity(values, values, values, k=10, p=0.9, depth=50)


def recommender(same=1.0, other=0.6, order=1.0, random=0.97, chosen=0.96):
    """A recommender that is stable, but for what is given: similarities to the base."""
    arms = [
        Arm("same seed", "control", alike(same), 0.1),
        Arm("other seed", "control", alike(other), 0.1),
        Arm("other row order", "control", alike(order), 0.1),
        Arm("delete random 1", "random", alike(random), 0.1, 5, 3),
        Arm("delete earliest", "chosen", alike(chosen), 0.1, 0, 90),
    ]
    low, high = np.arange(20) < 4, np.arange(20) >= 16
    return RecommenderFacts(arms, (), 10, 0.9, 20, 50, 300, 0.1, low, high, 1.0, 0)


def by_accuracy(low, high):
    noise = np.tile([-0.01, 0.01], 10)
    return np.where(np.arange(20) < 4, low, high) + noise


RECOMMENDER = {
    "nondeterministic_training": Case(recommender(same=0.999), recommender(), "warning"),
    "seed_sensitivity": Case(recommender(other=0.49), recommender(other=0.51), "warning"),
    "row_order_sensitivity": Case(recommender(order=0.94), recommender(order=0.96), "warning"),
    "interaction_sensitivity": Case(recommender(random=0.94), recommender(random=0.9, same=0.94), "warning"),
    "far_reaching_interaction": Case(recommender(chosen=0.93), recommender(chosen=0.95), "info"),
    "unequal_stability": Case(
        recommender(random=by_accuracy(0.7, 0.9)), recommender(random=by_accuracy(0.9, 0.7)), "info"
    ),
}

# --- retraining


def retrained(seed=0.0, order=0.0, data=0.0, same=0.0, carrying=60):
    """A model whose decisions stay, but for what is given."""
    rates = {"seed": seed, "row order": order, "rows left out": data}
    return RetrainingFacts(
        model="Model",
        is_classifier=True,
        churn={cause: Churn(rate, rate, rate, np.full(100, rate)) for cause, rate in rates.items()},
        rates={cause: np.full(5, rate) for cause, rate in rates.items()},
        same_seed=same,
        has_seed=True,
        bag_churn={},
        n_bags=0,
        guarantee=math.nan,
        carrying_rows=np.arange(carrying),
        rows=1000,
        test_rows=100,
        leave_out=0.01,
        tolerance=0.1,
        cost_per_flip=None,
        missing=(),
    )


RETRAINING = {
    "nondeterministic_training": Case(retrained(same=0.01), retrained(), "warning"),
    "seed_churn": Case(retrained(seed=0.02), retrained(seed=0.02, same=0.03), "warning"),
    "row_order_churn": Case(retrained(order=0.11), retrained(order=0.009), "error"),
    "data_churn": Case(retrained(data=0.02), retrained(data=0.01), "warning"),
    "influential_rows": Case(retrained(carrying=9), retrained(carrying=51), "info"),
}

# --- loops


def feedback(end=0.31, classes=2, delta=0.05, m=5, noise=0.0):
    """A loop in which the statistic stays at the truth, 0.3, but for what is given."""
    values = np.linspace(0.31, end, 6) + noise * np.array([[-1.0], [0.0], [1.0]]) * np.arange(6) / 5
    return LoopFacts(
        statistic="share of 1",
        truth=np.full(3, 0.3),
        values={"likeliest label": values},
        accuracy={"likeliest label": np.ones((3, 6))},
        classes={"likeliest label": classes, "true label": 2},
        n_classes=2,
        bound=np.ones(6),
        delta=delta,
        delta_unshifted=0.04,
        m=m,
        k=10,
        more_human=8,
        n_start=20,
        tolerance=0.02,
        missing=(),
    )


LOOP = {
    "bias_amplification": Case(feedback(end=0.36), feedback(end=0.36, noise=0.1), "warning"),
    "lost_class": Case(feedback(classes=1), feedback(), "error"),
    "shift_miscalibration": Case(feedback(delta=0.07), feedback(delta=0.05), "info"),
    "no_human_rows": Case(feedback(m=0), feedback(m=1), "warning"),
}


def synthetic(gain=0.0, noise=0.0, duplicates=0.0, diversity=1.0, gap=0.2, rows=300):
    """Synthetic rows that change nothing, but for what is given."""
    wobble = np.array([-0.001, 0.0, 0.001])
    plain = np.full(3, 0.3)
    error = {"synthetic rows": [plain - gain + wobble], "real rows with noise": [plain - noise + wobble]}
    held_out = {name: np.array(values) for name, values in error.items()}
    return AugmentationFacts(
        ratios=(1.0,),
        plain=plain,
        plain_train=plain - 0.2,
        error=held_out,
        train={name: values - gap for name, values in held_out.items()},
        fewer=plain,
        rows=rows,
        train_rows=200,
        duplicates=np.full(3, duplicates),
        diversity=np.full(3, diversity),
        distance=np.full(3, 0.1),
        refitted=True,
        missing=0,
    )


AUGMENTATION = {
    "memorising_generator": Case(synthetic(duplicates=1.0), synthetic(duplicates=0.1), "error"),
    "collapsed_generator": Case(synthetic(diversity=0.0), synthetic(diversity=0.6), "error"),
    "augmentation_hurts": Case(synthetic(gain=-0.1), synthetic(gain=-0.1, rows=48), "warning"),
    "noise_explains_gain": Case(synthetic(gain=0.1, noise=0.12), synthetic(gain=0.1, noise=0.02), "info"),
    "gap_without_gain": Case(synthetic(gap=0.05), synthetic(gap=0.15), "info"),
}

# --- an effect estimate


def average(estimate=1.0, stderr=0.1):
    return AverageEffect(estimate, stderr)


def effect(rows=1000, by_seed=(1.0, 1.01), **measured):
    seeds = np.array(by_seed)
    errors, numbers = np.full(len(seeds), 0.1), tuple(range(len(seeds)))
    return EffectFacts("DRLearner", rows, average(), numbers, seeds, errors, **measured)


def flip(change, dropped, happened=True):
    return effect(flips=(Flip(change, dropped, dropped, -0.1, 0.1, happened, of=1000, first=(3, 1)),))


def overlap(clipped=0, effective=900.0):
    return effect(overlap=Overlap(effective, clipped, 0.01, 0.1, 0.9, 0.02))


def learners(*estimates):
    return effect(learners={f"learner {i}": average(estimate) for i, estimate in enumerate(estimates)})


def constant(difference, spread=1.0):
    return effect(constant=ConstantComparison(1.0 + difference, 1.0, difference, 0.1, spread))


EFFECT = {
    "sign_hangs_on_few_rows": Case(flip("sign", 10), flip("sign", 11), "error"),
    "significance_hangs_on_few_rows": Case(flip("significance", 10), flip("significance", 10, False), "warning"),
    "estimate_depends_on_seed": Case(effect(by_seed=(1.0, 1.08)), effect(by_seed=(1.0, 1.07)), "warning"),
    "estimate_depends_on_learner": Case(learners(1.0, 1.21), learners(1.0, 1.19), "warning"),
    "poor_overlap": Case(overlap(clipped=51), overlap(clipped=50, effective=250.0), "warning"),
    "constant_effect_predicts_better": Case(constant(0.2), constant(-0.2), "warning"),
}

# --- after deployment


def deployed(low=0.85, high=0.89, realised=None, effect=0.0, unsupported=0, size=5000.0, calibration=0.01):
    """One chunk whose accuracy holds, but for what is given."""
    estimate = MetricEstimate("accuracy", (low + high) / 2, low, high, realised, 0.8, 1.0, False)
    overlap = WeightOverlap(10_000, size, 0, unsupported, 1000, 0.01)
    chunk = ChunkEstimate(0, 1000, 0, 1000, None, None, (estimate,), overlap, 0.7, None)
    return DeploymentFacts(
        method="WeightedCBPE",
        metrics=(AuditedMetric("accuracy", 0.87, True),),
        chunks=(chunk,),
        uncorrected=(chunk,),
        drift=(InputDrift("age", effect, 0.5),),
        reference_rows=10_000,
        calibration_error=calibration,
        left_out={},
        notes=(),
        planned=1,
        seed=0,
    )


DEPLOYMENT = {
    "performance_drop": Case(deployed(0.70, 0.79), deployed(0.70, 0.81), "error"),
    "concept_shift": Case(deployed(realised=0.825), deployed(realised=0.84), "warning"),
    "unsupported_rows": Case(deployed(unsupported=101), deployed(unsupported=100), "warning"),
    "low_effective_sample": Case(deployed(size=99.0), deployed(size=101.0), "warning"),
    "input_drift": Case(deployed(effect=0.11), deployed(effect=0.09), "info"),
    "miscalibrated_scores": Case(deployed(calibration=0.06), deployed(calibration=0.04), "info"),
}

# --- the update of a model that is served


def updates(before_widened=0.9, lifts=(0.0, 0.0, 0.0), opposed=0.2, lag=-0.05, minimum=0.6):
    """An update after which old data are at ``minimum`` for a while, and experiments that lift it by so much."""
    labels = ("rows", "frozen", "projected")
    low = {UNTREATED: minimum, **{name: minimum + lift for name, lift in zip(labels, lifts, strict=True)}}
    runs = {
        name: tuple(
            UpdateRun(np.arange(3), np.array([0.9, value + 0.001 * i, 0.89]), np.array([0.0, 0.5, 0.8]), 1.0)
            for i in range(3)
        )
        for name, value in low.items()
    }
    causes = ("head_initialisation", "hidden_plasticity", "gradient_conflict")
    return UpdateFacts(
        model="Net",
        metric="accuracy",
        before=0.9,
        before_widened=before_widened,
        new_classes=(3,),
        samples=(100, 100),
        every=1,
        runs=runs,
        experiments=dict(zip(causes, labels, strict=True)),
        remedies={"rows": "class_mean_rows"},
        tuned={},
        conflict=Conflict(-0.3, opposed, 0.1),
        lag=lag,
        decay=0.99,
        allowed_drop=0.02,
        not_checked={},
        cost="few runs",
        seeds=(0, 1, 2),
    )


UPDATE = {
    "head_initialisation": Case(
        updates(before_widened=0.5), updates(before_widened=0.89, lifts=(0.05, 0.2, 0)), "error"
    ),
    "hidden_plasticity": Case(updates(lifts=(0, 0.2, 0)), updates(lifts=(0, 0.05, 0)), "warning"),
    "gradient_conflict": Case(
        updates(lifts=(0, 0, 0.2), opposed=0.6), updates(lifts=(0, 0, 0.2), opposed=0.4), "warning"
    ),
    "averaging_lag": Case(updates(lag=-0.2), updates(lag=-0.08), "warning"),
}

# --- scores while tasks are learned


def scores(rows, trained):
    """A history of tasks that are evaluated from their first update on."""
    acc = np.array(rows, dtype=float)
    names = tuple(f"task {i + 1}" for i in range(acc.shape[1]))
    return AccuracyHistory(acc, np.array(trained), np.arange(len(acc)), names, (100,) * acc.shape[1])


def falling(step):
    """Eight tasks, each of which is learned less well than the last by so much and then kept."""
    ends = 0.95 - step * np.arange(8)
    rows = np.where(np.tri(8, dtype=bool), ends, np.nan)
    return scores(rows, range(8))


EVALUATION = {
    "label_offset": Case(
        scores([[0.9, np.nan], [0.5, 0.0], [0.8, 0.0]], [0, 1, 1]),
        scores([[0.9, np.nan], [0.85, 0.0], [0.8, 0.01]], [0, 1, 1]),
        "error",
    ),
    "loss_of_plasticity": Case(falling(0.05), falling(0.01), "warning"),
    "hidden_drop": Case(
        scores([[0.9, np.nan], [0.5, 0.3], [0.8, 0.9]], [0, 1, 1]),
        scores([[0.9, np.nan], [0.75, 0.3], [0.8, 0.9]], [0, 1, 1]),
        "warning",
    ),
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
    "init audit": INIT,
    "training audit": TRAINING,
    "perturbation grid": PERTURBATION,
    "recommender audit": RECOMMENDER,
    "loop audit": LOOP,
    "retraining audit": RETRAINING,
    "augmentation audit": AUGMENTATION,
    "effect audit": EFFECT,
    "deployment audit": DEPLOYMENT,
    "update audit": UPDATE,
    "continual evaluation": EVALUATION,
    "closed-loop audit": CLOSED_LOOP,
}
"""By name of the rule set, then by id."""
