"""Records of invented runs: a healthy one with every signal, and one change per cause that makes it sick."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from poise.store import Event, Record

WEIGHTS = [f"blocks.{i}.weight" for i in range(6)]
ATTENTION = ["blocks.0.attn", "blocks.1.attn"]
CLASSES = 10


@dataclass
class Run:
    """Signals and events of an invented run, to be changed by faults."""

    steps: int
    every: int
    random: np.random.Generator
    signals: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    @property
    def all_steps(self) -> np.ndarray:
        return np.arange(self.steps)

    @property
    def sampled(self) -> np.ndarray:
        # Dense at the start, as the tap samples, then every so many steps.
        return np.unique(np.concatenate([np.arange(min(20, self.steps)), np.arange(0, self.steps, self.every)]))

    def noisy(self, steps: np.ndarray, level: float | np.ndarray, share: float = 0.05) -> np.ndarray:
        return level * np.exp(share * self.random.standard_normal(len(steps)))

    def put(self, name: str, steps: np.ndarray, values: float | np.ndarray) -> None:
        self.signals[name] = (np.asarray(steps), np.broadcast_to(values, np.shape(steps)).astype(float))

    def values(self, name: str) -> np.ndarray:
        """A copy that may be written to; give it back with :meth:`put`."""
        return self.signals[name][1].copy()

    def change(self, name: str, start: int, values: float | Callable[[np.ndarray], np.ndarray]) -> None:
        """Replace what a signal is from step ``start`` on."""
        steps, old = self.signals[name]
        new = old.copy()
        late = steps >= start
        new[late] = values(steps[late]) if callable(values) else values
        self.signals[name] = (steps, new)

    def burst(self, start: int, length: int = 32) -> None:
        """Sample every step from ``start`` on, as the tap does after a trigger; values are those nearby."""
        for name, (steps, values) in list(self.signals.items()):
            if len(steps) == self.steps:
                continue
            dense = np.union1d(steps, np.arange(start, min(start + length, self.steps)))
            self.signals[name] = (dense, values[np.searchsorted(steps, dense, side="right") - 1])

    def event(self, step: int, kind: str, **payload: object) -> None:
        self.events.append(Event(step, kind, payload))

    def record(self) -> Record:
        return Record.from_arrays(self.signals, self.events)


def healthy(steps: int = 200, every: int = 10, seed: int = 0, tau: float = 40.0) -> Run:
    """A classifier that learns: the loss falls from log 10 to 0.3, gradients and updates are of usual size."""
    run = Run(steps, every, np.random.default_rng(seed))
    t, s = run.all_steps, run.sampled
    run.put("loss", t, run.noisy(t, 0.3 + 2.0 * np.exp(-t / tau), 0.08))
    run.put("grad_norm", t, run.noisy(t, 0.5 + 2.0 * np.exp(-t / 30), 0.2))
    run.put("lr", t, 1e-3)
    run.put("update_ratio", s, run.noisy(s, 1e-3 + 0.02 * np.exp(-s / 5), 0.1))
    for i, name in enumerate(WEIGHTS):
        run.put(f"grad_norm[{name}]", s, run.noisy(s, 0.3 + 0.05 * i))
        run.put(f"param_norm[{name}]", s, run.noisy(s, 4.0, 0.01))
        run.put(f"adam_rms[{name}]", s, run.noisy(s, 1.0, 0.15))
        run.put(f"adam_eps_shrink[{name}]", s, 0.999)
    for name in ATTENTION:
        run.put(f"attention_logit_max[{name}]", s, run.noisy(s, 4 + 8 * (1 - np.exp(-s / 100))))
        run.put(f"attention_entropy[{name}]", s, run.noisy(s, 0.7))
    run.put("dead_units[relu]", s, run.noisy(s, 0.1, 0.2))
    run.put("act_absmax[relu]", s, run.noisy(s, 5.0))
    run.put("logit_lse", s, run.noisy(s, 2.3 + 3 * (1 - np.exp(-s / 50))))
    run.put("logit_mean", s, -0.5 * np.ones(len(s)))
    run.put("logits_are_probabilities", s, 0.0)
    run.put("classes", s, float(CLASSES))
    run.put("label_entropy", s, np.minimum(run.noisy(s, 2.2, 0.02), 2.26))
    run.put("label_agreement", s, np.clip(0.1 + 0.8 * (1 - np.exp(-s / tau)), 0, 1))
    run.put("label_purity", s, np.clip(0.3 + 0.6 * (1 - np.exp(-s / tau)), 0, 1))
    run.put("label_ignored", s, 0.0)
    run.put("edge_ratio", s, 0.3)
    run.put("sharpness", s, 20.0)
    run.put("softmax_collapse", s, 0.0)
    run.put("zero_losses", s, 0.0)
    run.put(f"loss_scaling_alignment[{WEIGHTS[5]}]", s, 0.3)
    for name in WEIGHTS[:2]:
        run.put(f"effective_lr[{name}]", s, 1e-3 * 0.6 ** (s / steps))
    run.put("input_mean", s, 0.1 * run.random.standard_normal(len(s)))
    run.put("input_std", s, run.noisy(s, 1.0, 0.02))
    run.put("input_absmax", s, run.noisy(s, 3.5))
    run.put("input_nonfinite", s, 0.0)
    run.put("stale_gradient", s, 0.0)
    run.put("eval_mode", s, 0.0)
    parameters = {name: {"shape": [8, 8], "dtype": "torch.float32", "requires_grad": True} for name in WEIGHTS}
    run.event(0, "model", **{"class": "Net", "modules": {}, "parameters": parameters, "order": WEIGHTS})
    run.event(0, "optimizer", **{"class": "AdamW", "timeline": "", "groups": [{"lr": 1e-3, "parameters": WEIGHTS}]})
    run.event(0, "first_step", timeline="", state_empty=True, adaptive=True, stateful=True)
    return run


def make_low_precision(run: Run, dtype: str) -> None:
    facts = {name: {"shape": [8, 8], "dtype": f"torch.{dtype}"} for name in WEIGHTS}
    run.event(0, "model", **{"class": "Net", "modules": {}, "parameters": facts, "order": WEIGHTS})


def diverge(run: Run, step: int, rate: float = 0.3, ceiling: float = 50.0) -> None:
    level = float(run.values("loss")[max(step - 1, 0)])
    run.change("loss", step, lambda s: np.minimum(level * np.exp(rate * (s - step + 1)), ceiling))


# One fault per cause: (run, onset, strength in [0, 1]).


def attention_logit_growth(run: Run, onset: int, strength: float) -> None:
    name, rate = ATTENTION[1], 0.05 + 0.1 * strength
    run.change(f"attention_logit_max[{name}]", onset, lambda s: 12 * np.exp(rate * (s - onset)))
    run.change(f"attention_entropy[{name}]", onset, lambda s: 0.7 * np.exp(-rate * (s - onset)))


def output_logit_divergence(run: Run, onset: int, strength: float) -> None:
    rate = 1 + strength
    run.change("logit_mean", onset, lambda s: -1 - rate * (s - onset))
    run.change("logit_lse", onset, lambda s: 4 - rate * (s - onset))


def stale_second_moment(run: Run, onset: int, strength: float) -> None:
    run.burst(onset - 2)
    for name in WEIGHTS[:3]:
        steps, values = run.signals[f"adam_rms[{name}]"]
        run.put(f"adam_rms[{name}]", steps, np.where(steps == onset, 5 + 20 * strength, values))
    level = float(np.median(run.values("loss")[max(onset - 10, 0) : onset]))
    run.change("loss", onset + 1, lambda s: level + 2.5 * np.exp(-(s - onset) / 30))


def eps_dominates(run: Run, onset: int, strength: float) -> None:
    run.change(f"adam_eps_shrink[{WEIGHTS[0]}]", onset, 0.4 - 0.39 * strength)


def state_lost_on_resume(run: Run, onset: int, strength: float) -> None:
    run.event(0, "torch_load", has_optimizer_state=True)
    run.event(0, "load_state_dict", what="model", **{"class": "Net"})
    run.events = [e for e in run.events if e.kind != "first_step"]
    run.event(0, "first_step", timeline="", state_empty=True, adaptive=True, stateful=True, loaded_share=1.0)


def schedule_jump(run: Run, onset: int, strength: float) -> None:
    run.change("lr", onset, 1e-3 * (3 + 30 * strength))
    diverge(run, onset + 3)


def lr_too_high(run: Run, onset: int, strength: float) -> None:
    run.change("update_ratio", 0, 0.04 + strength)
    run.change("edge_ratio", 0, 1.2)
    diverge(run, onset)


def lr_too_small(run: Run, onset: int, strength: float) -> None:
    run.change("update_ratio", 0, 1e-5 * 10 ** (-3 * strength))
    run.put("loss", run.all_steps, run.noisy(run.all_steps, 2.3, 0.03))


def forward_nonfinite(run: Run, onset: int, strength: float) -> None:
    run.change("loss", onset, np.nan)
    run.change("grad_norm", onset, np.nan)
    run.event(onset, "nonfinite_forward", module="head", op="log", source="train.py:12", input_min=0.0, input_max=1.0)


def backward_nonfinite(run: Run, onset: int, strength: float) -> None:
    run.change("grad_norm", onset, np.nan)
    run.change("loss", onset + 1, np.nan)
    run.event(onset, "nonfinite_backward", parameters=[WEIGHTS[2]], module="blocks.2", op="sqrt", source="train.py:7")


def fp16_overflow(run: Run, onset: int, strength: float) -> None:
    skipped = np.zeros(run.steps)
    skipped[:2] = 1  # the scaler looks for its scale
    skipped[onset : onset + 3 + int(5 * strength)] = 1
    run.put("amp_skipped", run.all_steps, skipped)
    run.put("amp_scale", run.all_steps, 65536 * 0.5 ** np.cumsum(skipped))


def bf16_update_lost(run: Run, onset: int, strength: float) -> None:
    make_low_precision(run, "bfloat16")
    run.put(f"update_lost[{WEIGHTS[0]}]", run.sampled, 0.01)
    run.change(f"update_lost[{WEIGHTS[0]}]", onset, 0.35 + 0.6 * strength)


def bad_batch(run: Run, onset: int, strength: float) -> None:
    run.burst(onset)
    values = run.values("loss")
    values[onset] = values[onset - 10 : onset].mean() + 2 + 5 * strength
    run.put("loss", run.all_steps, values)
    steps, std = run.signals["input_std"]
    run.put("input_std", steps, np.where(steps == onset, 5 + 100 * strength, std))


def unscaled_inputs(run: Run, onset: int, strength: float) -> None:
    run.change("input_mean", 0, 30 + 100 * strength)
    run.change("input_std", 0, 20 + 200 * strength)
    run.put("loss", run.all_steps, run.values("loss") * 10)


def missing_zero_grad(run: Run, onset: int, strength: float) -> None:
    run.change("stale_gradient", 1, 1.0)
    run.change("grad_norm", 0, lambda s: 0.5 + 0.5 * s)


def double_softmax(run: Run, onset: int, strength: float) -> None:
    run.change("logits_are_probabilities", 0, 1.0)


def orphan_parameters(run: Run, onset: int, strength: float) -> None:
    run.event(2, "orphans", unoptimized=[], no_gradient=[], replaced=[WEIGHTS[5]])


def mode_error(run: Run, onset: int, strength: float) -> None:
    run.change("eval_mode", onset, 1.0)


def dead_units(run: Run, onset: int, strength: float) -> None:
    run.change("dead_units[relu]", onset, 0.92 + 0.08 * strength)


def vanishing_gradients(run: Run, onset: int, strength: float) -> None:
    for i, name in enumerate(WEIGHTS):
        run.put(f"grad_norm[{name}]", run.sampled, run.noisy(run.sampled, 10.0 ** (-(1 + strength) * (5 - i))))


def exploding_gradients(run: Run, onset: int, strength: float) -> None:
    run.change("grad_norm", 0, 10.0 ** (4 + 4 * strength))


def label_problem(run: Run, onset: int, strength: float) -> None:
    run.change("label_agreement", onset, 0.02)
    run.change("label_purity", onset, lambda s: 0.85 + 0 * s)
    for name in ("label_agreement", "label_purity"):
        run.change(name, 0, lambda s, name=name: np.where(s < onset, 0.9, run.signals[name][1]))
    diverge(run, onset)


def lr_above_curvature(run: Run, onset: int, strength: float) -> None:
    run.burst(onset)
    run.change("edge_ratio", onset, 2 + 10 * strength)
    diverge(run, onset)


def warmup_too_short(run: Run, onset: int, strength: float) -> None:
    t = run.all_steps
    thrown = np.where(t < 5, 2.3, np.where(t < 25, 8.0, 0.3 + 6 * np.exp(-(t - 25) / 20)))
    run.put("loss", t, run.noisy(t, thrown, 0.05))
    run.change("edge_ratio", 0, lambda s: np.where(s < 25, 3 + 10 * strength, 0.4))


def benign_catapult(run: Run, onset: int, strength: float) -> None:
    run.burst(onset - 5)
    run.burst(onset + 5)
    values, t = run.values("loss"), run.all_steps
    swing = (2 + 5 * strength) * np.exp(-np.maximum(t - onset, 0))
    run.put("loss", t, values + np.where(t >= onset, swing, 0.0))
    run.change("edge_ratio", 0, lambda s: np.where(s <= onset, 1.2 + strength, 0.5))
    run.change("sharpness", 0, lambda s: np.where(s <= onset + 2, 50.0, 30.0 - 10 * strength))


def softmax_collapse(run: Run, onset: int, strength: float) -> None:
    for name in ("softmax_collapse", "zero_losses"):
        run.change(name, onset, 0.6 + 0.4 * strength)


def norm_growth(run: Run, onset: int, strength: float) -> None:
    run.put("loss", run.all_steps, run.noisy(run.all_steps, 0.8 + 1.5 * np.exp(-run.all_steps / 40)))
    run.change(f"effective_lr[{WEIGHTS[1]}]", onset, 1e-3 / (6 + 20 * strength))


def loss_scaling(run: Run, onset: int, strength: float) -> None:
    run.put("loss", run.all_steps, run.noisy(run.all_steps, 0.01 + 2.3 * np.exp(-run.all_steps / 10)))
    run.change(f"loss_scaling_alignment[{WEIGHTS[5]}]", onset, 0.6 + 0.35 * strength)


def lr_lost_on_resume(run: Run, onset: int, strength: float) -> None:
    run.event(0, "torch_load", has_optimizer_state=True, has_schedule=True)
    run.event(0, "load_state_dict", what="optimizer", lr=1e-3 / (3 + 10 * strength), **{"class": "AdamW"})


def deviation_of_one_value(run: Run, onset: int, strength: float) -> None:
    run.change("loss", onset, np.nan)
    run.event(
        onset, "nonfinite_forward", module="", op="", statistic="std", variable="a", shape=[1], source="train.py:12"
    )


def fully_masked_softmax(run: Run, onset: int, strength: float) -> None:
    run.change("loss", onset, np.nan)
    run.event(onset, "nonfinite_forward", module="attn", op="softmax", source="train.py:12", masked_rows=2, rows=64)


def unscaled_targets(run: Run, onset: int, strength: float) -> None:
    spread = 1e3 * 10 ** (2 * strength)
    run.event(0, "first_residuals", mean=-3 * spread, std=spread)
    run.put("loss", run.all_steps, run.noisy(run.all_steps, 10 * spread**2, 0.01))


def sum_reduction(run: Run, onset: int, strength: float) -> None:
    run.event(0, "loss_is_sum", count=64, source="train.py:12")
    diverge(run, onset)


# What a broken contract leaves in the record: one event, (kind, payload).
EVENTS: dict[str, tuple[str, dict[str, object]]] = {
    "accumulation_not_divided": ("accumulation_not_divided", {"count": 8, "absorbed": False}),
    "batch_as_time": ("batch_as_time", {"module": "lstm", "class": "LSTM", "batch": 32, "taken": 20}),
    "clip_before_unscale": ("clip_before_unscale", {"limit": 1.0, "scale": 65536.0}),
    "ctc_target_too_long": ("ctc_target_too_long", {"share": 0.1, "frames": 8, "needed": 9}),
    "dropout_in_evaluation": ("dropout_in_evaluation", {"module": "net"}),
    "gradients_lost": ("gradients_lost", {"timeline": ""}),
    "kl_div_input": ("kl_div_input", {"wrong": ["input"], "given": "probabilities"}),
    "loss_broadcast": ("loss_broadcast", {"prediction": [64, 1], "target": [64]}),
    "nll_input": ("nll_input", {"given": "logits"}),
    "norm_over_batch": ("norm_over_batch", {"function": "layer_norm", "module": "norm", "shape": [16, 8]}),
    "optimizer_recreated": ("optimizer_recreated", {"class": "Adam", "steps": 10, "memory": 1000.0}),
    "partial_load": (
        "load_state_dict",
        {
            "class": "Net",
            "given": 4,
            "missing": ["a"],
            "missing_total": 4,
            "unexpected": ["module.a"],
            "unexpected_total": 4,
        },
    ),
    "requires_grad_in_vain": (
        "requires_grad_in_vain",
        {
            "attribute": "requires_grad",
            "value": False,
            "owner": "module",
            "optimized": True,
            "names": ["body"],
            "total": 1,
            "tensors": 2,
            "numbers": 72,
        },
    ),
    "schedule_per_batch": ("schedule_per_batch", {"class": "StepLR", "how": "decays", "length": None, "steps": 40}),
    "schedule_steps_missing": (
        "schedule_steps_missing",
        {"class": "OneCycleLR", "how": "epochs", "length": 200, "steps": 200, "taken": 10},
    ),
    "sigmoid_twice": ("sigmoid_twice", {"made_by": "sigmoid"}),
    "softmax_over_batch": ("softmax_over_batch", {"made_by": "logsoftmax", "function": "nll_loss"}),
    "target_out_of_range": (
        "target_out_of_range",
        {"function": "binary_cross_entropy", "low": 0.0, "high": 255.0, "want": [0, 1]},
    ),
    "target_not_detached": ("target_with_gradient", {"what": "target"}),
    "targets_ignored": ("targets_ignored", {"function": "cross_entropy", "targets": 32}),
    "unmixed_batches": ("labels_unmixed", {"within": 0.1, "together": 2.3, "batches": 10}),
    "unreachable_target": (
        "unreachable_target",
        {"made_by": "relu", "share": 0.5, "low": -2.0, "high": 2.0, "want": [0.0, None]},
    ),
    "unregistered_layers": (
        "unregistered",
        {"names": ["layers[0]"], "where": ["list"], "numbers": 500, "trained": 100},
    ),
    "updates_undone": ("updates_undone", {"timeline": "", "names": WEIGHTS[:3], "steps": 30}),
}


def _from_event(kind: str, payload: dict[str, object]) -> Callable[[Run, int, float], None]:
    def fault(run: Run, onset: int, strength: float) -> None:
        run.event(2, kind, source="/home/me/train.py:12", **payload)

    return fault


def without_classes(run: Run) -> None:
    """Make a regression of it: nothing is known of classes and labels."""
    labels = ("classes", "label_entropy", "label_agreement", "label_purity", "label_ignored")
    run.signals = {name: series for name, series in run.signals.items() if name not in labels}


def set_optimizer(run: Run, name: str, **settings: float) -> None:
    run.events = [event for event in run.events if event.kind != "optimizer"]
    run.event(0, "optimizer", **{"class": name, "timeline": "", "groups": [{**settings, "parameters": WEIGHTS}]})


def eps_underflow(run: Run, onset: int, strength: float) -> None:
    make_low_precision(run, "float16")
    set_optimizer(run, "Adam", eps=10.0 ** (-8 - 8 * strength))
    for name in ("loss", "grad_norm"):
        run.change(name, onset, np.nan)
    run.event(onset, "nonfinite_forward", where="weights", parameters=WEIGHTS, update=True)


def lowprec_state(run: Run, onset: int, strength: float) -> None:
    make_low_precision(run, "bfloat16")
    set_optimizer(run, "AdamW", betas=[0.9, 0.95])  # in truth slower: it looks back for 20 steps here
    run.put("second_moment_stuck", run.sampled, 0.97 + 0.03 * strength)
    for name in WEIGHTS:
        run.change(f"adam_rms[{name}]", onset, 0.2 * (1 - strength) + 0.01)


def repeated_tokens(run: Run, onset: int, strength: float) -> None:
    run.burst(onset)
    values = run.values("loss")
    values[onset] = values[onset - 10 : onset].mean() + 2 + 5 * strength
    run.put("loss", run.all_steps, values)
    steps = run.signals["input_std"][0]
    run.put("token_entropy", steps, np.where(steps == onset, 0.8 * (1 - strength), run.noisy(steps, 4.0, 0.02)))
    run.put("token_repeats", steps, np.where(steps == onset, 0.6 + 0.4 * strength, run.noisy(steps, 0.05)))


def clip_saturated(run: Run, onset: int, strength: float) -> None:
    set_optimizer(run, "SGD", momentum=0.9)
    run.events = [e for e in run.events if e.kind != "first_step"]
    run.event(0, "first_step", timeline="", state_empty=True, adaptive=False, stateful=True)
    run.put("clip_max", run.all_steps, 0.02 * (1 - strength) + 1e-4)
    run.put("loss", run.all_steps, run.noisy(run.all_steps, 2.3, 0.01))


def weight_decay_too_strong(run: Run, onset: int, strength: float) -> None:
    set_optimizer(run, "SGD", weight_decay=0.3 + strength, momentum=0.9)
    run.put("loss", run.all_steps, run.noisy(run.all_steps, 2.3, 0.01))
    for name in WEIGHTS:
        run.put(f"param_norm[{name}]", run.sampled, 4.0 * np.exp(-run.sampled / 20))


def bootstrap_divergence(run: Run, onset: int, strength: float) -> None:
    run.event(3, "bootstrapped", copy="Net")
    run.change("loss", onset, lambda s: 0.5 * np.exp((0.1 + 0.2 * strength) * (s - onset)))


def policy_collapse(run: Run, onset: int, strength: float) -> None:
    run.event(1, "policy_gradient", distribution="Categorical")
    run.put("policy_entropy", run.all_steps, 0.9)
    run.change("policy_entropy", onset, 0.01 * (1 - strength))


def undetermined(run: Run, onset: int, strength: float) -> None:
    without_classes(run)
    run.put("loss", run.all_steps, run.noisy(run.all_steps, 1.0, 0.01 + 0.04 * strength))
    run.event(run.steps, "script_end", how="finished")


def stall(run: Run) -> None:
    without_classes(run)
    run.put("loss", run.all_steps, run.noisy(run.all_steps, 1.0, 0.01))


def saturation(run: Run, onset: int, strength: float) -> None:
    for i in range(2):
        run.put(f"saturated[tanh{i}]", run.sampled, 0.7 + 0.3 * strength)


def attention_entropy_collapse(run: Run, onset: int, strength: float) -> None:
    stall(run)
    for name in ATTENTION:
        run.put(f"attention_entropy_median[{name}]", run.sampled, 0.05 * 0.01**strength)


def residual_explosion(run: Run, onset: int, strength: float) -> None:
    names = [f"blocks.{i}" for i in range(12)]
    run.event(1, "blocks", names=names, residual=12, post_norm=0)
    for i, name in enumerate(names):
        run.put(f"act_rms[{name}]", run.sampled, run.noisy(run.sampled, (1.7 + strength) ** i, 0.01))


def postnorm_gradient_imbalance(run: Run, onset: int, strength: float) -> None:
    stall(run)
    names = [name.removesuffix(".weight") for name in WEIGHTS]
    run.event(1, "blocks", names=names, residual=6, post_norm=6)
    run.put(f"grad_norm[{WEIGHTS[0]}]", run.sampled, run.noisy(run.sampled, 0.55 / (20 + 200 * strength)))


def small_batch_bn(run: Run, onset: int, strength: float) -> None:
    for i in range(2):
        run.put(f"bn_values[bn{i}]", run.sampled, 2.0)


def norm_gain_collapse(run: Run, onset: int, strength: float) -> None:
    stall(run)
    run.event(0, "model", **{"class": "Net", "modules": {"n": "LayerNorm"}, "parameters": {}, "order": []})
    run.put("param_norm[n.weight]", run.sampled, 8.0 * np.exp(-run.sampled / (2 + 8 * (1 - strength))))


def posterior_collapse(run: Run, onset: int, strength: float) -> None:
    without_classes(run)
    steps = np.arange(240)
    run.steps = len(steps)
    run.put("loss", steps, run.noisy(steps, 0.3 + 2.0 * np.exp(-steps / 10), 0.02))
    run.put("latent_active", np.arange(0, 240, 10), np.where(np.arange(0, 240, 10) < 5 + 40 * strength, 0.5, 0.0))
    run.event(run.steps, "script_end", how="finished")


def representation_collapse(run: Run, onset: int, strength: float) -> None:
    without_classes(run)
    run.put("embedding_spread", run.sampled, 0.5 * np.exp(-run.sampled / (20 + 20 * (1 - strength))))
    run.event(run.steps, "script_end", how="finished")


def discriminator_wins(run: Run, onset: int, strength: float) -> None:
    without_classes(run)
    steps = np.arange(260)
    run.put("loss", steps, run.noisy(steps, 1.4 * np.exp(-np.minimum(steps, 80) / (5 + 15 * (1 - strength)))))
    sampled = np.arange(0, 260, 10)
    run.put("opponent_loss", sampled, 0.7 + sampled / 10)
    run.event(0, "adversarial", timeline="")


def learned_std_runaway(run: Run, onset: int, strength: float) -> None:
    without_classes(run)
    rise = np.exp((0.1 + 0.1 * strength) * np.maximum(run.sampled - onset, 0))
    run.put("learned_std", run.sampled, rise)
    run.put("standard_residual", run.sampled, 1 / rise)


FAULTS: dict[str, Callable[[Run, int, float], None]] = {
    fault.__name__: fault
    for fault in (
        attention_logit_growth,
        output_logit_divergence,
        stale_second_moment,
        eps_dominates,
        state_lost_on_resume,
        schedule_jump,
        lr_too_high,
        lr_too_small,
        forward_nonfinite,
        backward_nonfinite,
        fp16_overflow,
        bf16_update_lost,
        bad_batch,
        unscaled_inputs,
        missing_zero_grad,
        double_softmax,
        orphan_parameters,
        mode_error,
        dead_units,
        vanishing_gradients,
        exploding_gradients,
        label_problem,
        lr_above_curvature,
        warmup_too_short,
        benign_catapult,
        softmax_collapse,
        norm_growth,
        loss_scaling,
        lr_lost_on_resume,
        deviation_of_one_value,
        fully_masked_softmax,
        unscaled_targets,
        sum_reduction,
        clip_saturated,
        repeated_tokens,
        eps_underflow,
        lowprec_state,
        weight_decay_too_strong,
        bootstrap_divergence,
        policy_collapse,
        undetermined,
        saturation,
        attention_entropy_collapse,
        residual_explosion,
        postnorm_gradient_imbalance,
        small_batch_bn,
        norm_gain_collapse,
        posterior_collapse,
        representation_collapse,
        discriminator_wins,
        learned_std_runaway,
    )
}
FAULTS |= {cause: _from_event(*event) for cause, event in EVENTS.items()}


def sick(
    cause: str, onset: int = 60, strength: float = 0.5, steps: int = 200, every: int = 10, seed: int = 0
) -> Record:
    """A record in which one cause is present."""
    run = healthy(steps, every, seed)
    FAULTS[cause](run, onset, strength)
    return run.record()
