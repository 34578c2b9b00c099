"""Study of "Need is all you need: homeostatic neural networks adapt to concept shift".

A stream of images in which two classes swap their labels now and then; the learning rate is constant, regulated by
what the model recognises, moved at random, or searched freely.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn
from torch.optim import SGD

from poise.continual import LabelSwapStream
from poise.evidence import compare_paired
from poise.optim import HomeostaticLR
from poise.report import Text
from poise.studies.kit import Budget, ClaimResult, Measured, Paper, Presentation, Progress, Study, claim
from poise.studies.kit.grid import run_grid
from poise.studies.kit.images import images, on_fashion
from poise.studies.kit.one_thread import one_thread
from poise.studies.kit.rules import above, at_least, at_most, below
from poise.studies.kit.tables import seed_chart, seed_table
from poise.studies.kit.words import difference, listed

ETA, STEP, BATCH = 0.0058, 0.1, 10
CONSTANT, HOMEOSTATIC, RANDOM, FREE = "constant", "homeostatic", "random", "free search"
FAST, SLOW, NEVER = "fast swaps", "slow swaps", "no swaps"
RATES = (0.001, 0.0058, 0.02, 0.05, 0.1)
WINDOW = 500
_TUNING = 5_000

Setting = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a budget buys; swaps come after so many samples."""

    train: int = 10_000
    epochs: int = 1
    fast: int = 500
    slow: int = 2_500
    n_jobs: int = -1

    def every(self, drift: str) -> int | None:
        """Return the samples between two swaps."""
        return {FAST: self.fast, SLOW: self.slow, NEVER: None}[drift]


PLANS: dict[Budget, Plan] = {
    "tiny": Plan(1_000, 1, 200, 500, n_jobs=1),
    "default": Plan(),
    "full": replace(Plan(), train=20_000, epochs=2, fast=1_000, slow=5_000),
}


def network(pixels: int, seed: int) -> nn.Sequential:
    """Return the paper's network: ELU, weights of variance 2 / fan-in, biases of variance 1."""
    layers: list[nn.Module] = []
    generator = torch.Generator().manual_seed(seed)
    for fan_in, fan_out in ((pixels, 80), (80, 60), (60, 10)):
        layer = nn.Linear(fan_in, fan_out)
        nn.init.normal_(layer.weight, std=(2 / fan_in) ** 0.5, generator=generator)
        nn.init.normal_(layer.bias, generator=generator)
        layers += [layer, nn.ELU()]
    return nn.Sequential(*layers[:-1])


def stream(plan: Plan, setting: Setting, seed: int, rate: float = ETA) -> NDArray[np.bool_]:
    """Train on the stream; return for each sample whether it was recognised before it was trained on."""
    with one_thread():
        kind, drift = setting
        data = images(plan.train, 100)
        model = network(data.pixels, seed)
        optimizer = SGD(model.parameters(), rate)
        control = None
        if kind in (HOMEOSTATIC, FREE):
            effect = "free" if kind == FREE else {c: 1 if c >= 5 else -1 for c in range(10)}
            control = HomeostaticLR(optimizer, model, effect=effect, step=STEP)  # type: ignore[arg-type]
        coins, right = np.random.default_rng(seed + 1), []
        for x, y in LabelSwapStream(*data.train, plan.every(drift), batch=BATCH, epochs=plan.epochs, seed=seed):
            outputs = model(x)
            right.append(outputs.argmax(1) == y)
            optimizer.zero_grad()
            F.cross_entropy(outputs, y).backward()
            if control is not None:
                control.observe(x, y)
            elif kind == RANDOM and coins.random() < 0.5:
                move = STEP * rate if int(y[-1]) >= 5 else -STEP * rate
                optimizer.param_groups[0]["lr"] = max(1e-8, optimizer.param_groups[0]["lr"] + move)
            optimizer.step()
        return torch.cat(right).numpy()


# --- the experiment ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Results:
    """Recognised samples by kind of rate and drift, one row a seed; with fast swaps also at the best constant rate."""

    plan: Plan
    data: str
    right: Mapping[Setting, NDArray[np.bool_]]
    best: NDArray[np.bool_]
    best_rate: float

    def accuracy(self, kind: str, drift: str) -> NDArray[np.float64]:
        """Return the fraction of samples recognised before they were trained on, for each seed."""
        return self.right[kind, drift].mean(1)

    def gain(self, drift: str, kind: str = HOMEOSTATIC, over: str = CONSTANT) -> NDArray[np.float64]:
        """Return how much better one kind of rate is than another, for each seed."""
        return self.accuracy(kind, drift) - self.accuracy(over, drift)


def experiment(budget: Budget, seeds: Sequence[int], progress: Progress) -> Results:
    """Run every setting; the best constant rate is chosen on a seed of its own."""
    plan = PLANS[budget]
    name = images(plan.train, 100).name
    tuned = {rate: stream(plan, (CONSTANT, FAST), seeds[0] + _TUNING, rate).mean() for rate in RATES}
    best = max(tuned, key=lambda rate: tuned[rate])
    settings = [*product((CONSTANT, HOMEOSTATIC), (FAST, SLOW, NEVER)), (RANDOM, FAST), (FREE, FAST), ("best", FAST)]

    def one(setting: Setting, seed: int) -> NDArray[np.bool_]:
        return stream(plan, (CONSTANT, FAST), seed, best) if setting[0] == "best" else stream(plan, setting, seed)

    runs = run_grid(one, settings, seeds, progress, plan.n_jobs, "{0[0]}, {0[1]}".format)
    right = {setting: np.stack(values) for setting, values in runs.items()}
    return Results(plan, name, right, right.pop(("best", FAST)), best)


# --- the claims --------------------------------------------------------------------------------------------------


@claim(
    "fast",
    "With frequent swaps a homeostatic rate adapts better than the same constant rate.",
    paper="largest advantage at the highest rate; tables not seen",
    protocol="Accuracy on each sample before it is trained on. Gain over a constant rate of 0.0058.",
    reproduced=at_least("gain", 0.02) & above("gain", 0.0),
    refuted=at_most("gain", 0.0),
    over_seeds=["gain"],
)
def fast(results: Results) -> Measured:
    gain = results.gain(FAST)
    paired = compare_paired(
        results.accuracy(CONSTANT, FAST), results.accuracy(HOMEOSTATIC, FAST), lower_is_better=False
    )
    return on_fashion(results.data, Measured(f"gain {difference(paired)}", {"gain": gain.mean()}, {"gain": gain}))


@claim(
    "order",
    "The gain is larger the more frequent the swaps, and without swaps nothing is lost.",
    paper="figure",
    protocol="More: gain with fast less gain with slow swaps. Still: gain without swaps.",
    reproduced=above("more", 0.0) & at_least("still", -0.01),
    refuted=below("still", -0.01) | below("more", 0.0),
    over_seeds=["more", "still"],
)
def order(results: Results) -> Measured:
    gains = {drift: results.gain(drift) for drift in (FAST, SLOW, NEVER)}
    more, still = gains[FAST] - gains[SLOW], gains[NEVER]
    words = ", ".join(f"{gain.mean():+.3f} with {drift}" for drift, gain in gains.items())
    numbers = {"more": more.mean(), "still": still.mean()}
    return on_fashion(results.data, Measured(words, numbers, {"more": more, "still": still}))


@claim(
    "random",
    "A rate that is moved at random does worse.",
    paper="figure",
    protocol="Fast swaps. Lead: homeostatic less random.",
    reproduced=above("lead", 0.0),
    over_seeds=["lead"],
)
def at_random(results: Results) -> Measured:
    lead = results.gain(FAST, over=RANDOM)
    words = f"lead by seed {listed(lead, '+.3f')}"
    return on_fashion(results.data, Measured(words, {"lead": lead.mean()}, {"lead": lead}))


@claim(
    "best-constant",
    "Our control: the gain is not just that of a larger rate.",
    paper="not tested",
    protocol="Fast swaps. Lead over the best of five constant rates, chosen on a seed of its own.",
    reproduced=above("lead", 0.0),
    over_seeds=["lead"],
)
def best_constant(results: Results) -> Measured:
    own, best = results.accuracy(HOMEOSTATIC, FAST), results.best.mean(1)
    lead = own - best
    words = f"{own.mean():.3f} homeostatic, {best.mean():.3f} at the best constant rate, {results.best_rate:g}"
    return on_fashion(results.data, Measured(words, {"lead": lead.mean()}, {"lead": lead}))


@claim(
    "coupling",
    "Our control: the coupling to what the model recognises adds to a free search of the rate.",
    paper="not tested",
    protocol="Fast swaps. Lead of the homeostatic rate over the better of both directions, whatever the class.",
    reproduced=above("lead", 0.0),
    over_seeds=["lead"],
)
def coupling(results: Results) -> Measured:
    lead = results.gain(FAST, over=FREE)
    own, free = results.accuracy(HOMEOSTATIC, FAST), results.accuracy(FREE, FAST)
    words = f"{own.mean():.3f} homeostatic, {free.mean():.3f} by a free search"
    return on_fashion(results.data, Measured(words, {"lead": lead.mean()}, {"lead": lead}))


# --- the report --------------------------------------------------------------------------------------------------


def present(results: Results, claims: Mapping[str, ClaimResult]) -> Presentation:
    """Put figure, table and summary together."""
    window = min(WINDOW, results.plan.train // 4)
    lines = {}
    for kind in (CONSTANT, HOMEOSTATIC, FREE):
        values = results.right[kind, FAST]
        blocks = values[:, : values.shape[1] // window * window].reshape(len(values), -1, window).mean(-1)
        lines[kind] = (window * np.arange(1, blocks.shape[1] + 1), blocks)
    picture = seed_chart(
        "Fast swaps", lines, "samples seen", f"accuracy over {window} samples, before training on them"
    )
    rows = {setting: results.accuracy(*setting) for setting in results.right}
    rows["constant, best rate", FAST] = results.best.mean(1)
    return Presentation(
        f"With a swap every {results.plan.fast} samples of {results.data}: {claims['fast'].text}. Against better "
        f"constants: {claims['best-constant'].text}; against a free search: {claims['coupling'].text}.",
        [
            picture,
            seed_table("Accuracy on samples before they are trained on", ["rate", "drift"], rows),
            Text(
                f"784-80-60-10 with ELU and large random biases, as in the paper; plain SGD, batches of {BATCH}, "
                f"initial rate {ETA:g}, steps of a tenth of it, a trial at the last sample of every batch, on the 20 "
                "samples before it with the labels that they had. The paper's own script decides at the first sample "
                "of a batch, with almost no gradient, and remembers samples with their new labels; neither is done "
                "here.",
                title="How to read it",
            ),
        ],
        picture.figure,
    )


STUDY = Study(
    slug="homeostatic",
    title="Does a learning rate that recognised classes raise and lower adapt better to drifting labels?",
    room="continual",
    paper=Paper(
        "Need is All You Need: Homeostatic Neural Networks Adapt to Concept Shift", "Man et al.", 2022, "2205.08645"
    ),
    seeds={"tiny": 2, "default": 6, "full": 12},
    experiment=experiment,
    claims=(fast, order, at_random, best_constant, coupling),
    present=present,
)
