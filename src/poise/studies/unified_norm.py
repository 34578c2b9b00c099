"""Study of "Unified Normalization": a constant scale at inference, and whether it trains as well as layer norm.

Small vision Transformers read digits as 16 patches. Four parts: parity with layer norm, training with outliers among
the images, the time of inference after folding, and how the statistics of the paper's diagnosis move here.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from poise.evidence import PairedComparison, compare_paired
from poise.nn import ReferenceUnifiedNorm, UnifiedNorm, fuse_norms, replace_norm
from poise.nn.replace_norm import ChannelLastBatchNorm
from poise.report import Figure, Table, Text, bar_chart
from poise.studies.kit import Budget, ClaimResult, Measured, Paper, Presentation, Progress, Study, claim
from poise.studies.kit.bootstrap import bootstrap_over_seeds
from poise.studies.kit.digits import digits
from poise.studies.kit.grid import part_of, run_grid
from poise.studies.kit.one_thread import one_thread
from poise.studies.kit.rules import above, all_or_none, at_least, at_most, below
from poise.studies.kit.tables import seed_table
from poise.studies.kit.words import interval

WIDTH, BLOCKS, HEADS, BATCH, LR, WARM_UP = 32, 3, 2, 16, 3e-3, 20
TRAIN = 1300
OUTLIER_SHARE, OUTLIER_SCALE = 0.05, 30.0

# Without the filter ours and the published algorithm do the same; with it skipped steps leave no trace in ours.
LN, BN, UN, FILTERED, PUBLISHED = "layer norm", "batch norm", "unified", "unified, filter", "unified, published filter"
CLEAN_ARMS = (LN, BN, UN, FILTERED)
STRESSED_ARMS = (*CLEAN_ARMS, PUBLISHED)

Images = Float[Tensor, "batch 16 4"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a budget buys."""

    steps: int = 600
    repeats: int = 30
    n_jobs: int = -1


PLANS: dict[Budget, Plan] = {
    "tiny": Plan(steps=10, repeats=2, n_jobs=1),
    "default": Plan(),
    "full": Plan(steps=3000),
}


# --- the network ---------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Pre-norm attention, then a pre-norm MLP four times as wide.

    Args:
        width: of the residual stream.
        heads: of the attention.
        norm: makes a norm of so many channels.
    """

    def __init__(self, width: int, heads: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.qkv, self.out = norm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2, self.up, self.down = norm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
        """Return x + f(Norm(x)) for attention, then for the MLP."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        branch: Tensor = self.down(F.gelu(self.up(self.norm2(x))))
        return x + branch


class DigitTransformer(nn.Module):
    """Patches of 2 x 2 pixels with learned positions, blocks, a last norm, and the mean of the positions.

    Args:
        norm: makes a norm of so many channels.
    """

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.patches = nn.Linear(4, WIDTH)
        self.positions = nn.Parameter(0.02 * torch.randn(16, WIDTH))
        self.blocks = nn.Sequential(*(Block(WIDTH, HEADS, norm) for _ in range(BLOCKS)))
        self.norm, self.head = norm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, x: Images) -> Float[Tensor, "batch 10"]:
        """Return the logits."""
        logits: Tensor = self.head(self.norm(self.blocks(self.patches(x) + self.positions)).mean(1))
        return logits


def norms(arm: str, warmup_iters: int) -> Callable[[int], nn.Module]:
    """Return what makes the norms of an arm."""
    made: dict[str, Callable[[int], nn.Module]] = {
        LN: nn.LayerNorm,
        BN: ChannelLastBatchNorm,
        UN: lambda width: UnifiedNorm(width, warmup_iters=warmup_iters),
        FILTERED: lambda width: UnifiedNorm(width, warmup_iters=warmup_iters, outlier_filtration=True),
        PUBLISHED: lambda width: ReferenceUnifiedNorm(width, warmup_iters=warmup_iters, outlier_filtration=True),
    }
    return made[arm]


def patches(x: Float[Tensor, "batch 64"]) -> Images:
    """Cut digits into squares of 2 x 2 pixels."""
    return x.unflatten(1, (4, 2, 4, 2)).transpose(2, 3).reshape(-1, 16, 4)


# --- one run -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Run:
    """One network: its test accuracy in per cent, the steps that its norms skipped, and how statistics moved.

    ``moments`` are second moments of the norms' inputs, over the last quarter of the steps.
    """

    accuracy: float
    skipped: int
    moments: Float[np.ndarray, "steps norms channels"]


def train(arm: str, stressed: bool, steps: int, seed: int) -> Run:
    """Train one network with AdamW, warm-up and cosine; a twentieth of the stressed batches has an outlier."""
    x, y, x_test, y_test = digits(seed, TRAIN, "unit")
    images, held_out = patches(x), patches(x_test)
    generator = torch.Generator().manual_seed(seed)
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = DigitTransformer(norms(arm, steps // 10))
        probe = MomentProbe(net)
        optimizer = AdamW(net.parameters(), LR, foreach=True)
        schedule = LambdaLR(optimizer, lambda t: min(1, (t + 1) / WARM_UP) * (1 + np.cos(np.pi * t / steps)) / 2)
        for step in range(steps):
            chosen = torch.randint(TRAIN, (BATCH,), generator=generator)
            spoilt = torch.rand((), generator=generator) < OUTLIER_SHARE
            batch = images[chosen]
            if stressed and spoilt:
                batch[0] *= OUTLIER_SCALE
            probe.on = step >= steps - max(2, steps // 4)
            optimizer.zero_grad()
            F.cross_entropy(net(batch), y[chosen]).backward()
            optimizer.step()
            schedule.step()
        net.eval()
        probe.on = False
        with torch.no_grad():
            right = (net(held_out).argmax(1) == y_test).double().mean().item()
    skipped = sum(int(m.skip_counter) for m in net.modules() if isinstance(m, UnifiedNorm))
    return Run(100 * right, skipped, probe.moments())


class MomentProbe:
    """Keeps the second moment of every channel of every norm's input, while it is on."""

    def __init__(self, net: DigitTransformer) -> None:
        self.on = False
        modules = [module for name, module in net.named_modules() if "norm" in name]
        self._kept: list[list[Tensor]] = [[] for _ in modules]
        for kept, module in zip(self._kept, modules, strict=True):
            module.register_forward_pre_hook(lambda _, inputs, kept=kept: self._keep(kept, inputs[0]))

    def moments(self) -> Float[np.ndarray, "steps norms channels"]:
        """Return what was kept."""
        return torch.stack([torch.stack(kept) for kept in self._kept], 1).numpy()

    def _keep(self, kept: list[Tensor], x: Tensor) -> None:
        if self.on:
            kept.append(x.detach().square().mean((0, 1)))


def fluctuation(moments: Float[np.ndarray, "steps norms channels"]) -> Float[np.ndarray, "norms 3"]:
    """Return of each norm the variation of its statistics over time, their gap of means, and how outliers stick out.

    The standard deviation over steps by the mean (median over channels); the arithmetic less the geometric mean over
    steps, by the arithmetic (largest channel); and the largest over the median of all values of a channel (largest).
    """
    mean = moments.mean(0)
    variation = np.median(moments.std(0) / mean, axis=-1)
    gap = (1 - np.exp(np.log(moments).mean(0)) / mean).max(-1)
    sticking_out = (moments.max(0) / np.median(moments, axis=0)).max(-1)
    return np.stack([variation, gap, sticking_out], -1)


# --- inference ---------------------------------------------------------------------------------------------------


def inference_times(repeats: int, seed: int) -> dict[str, list[float]]:
    """Return milliseconds of a block's forward by its norm, in turn: width 256, 8 images of 197 positions, 1 thread."""
    with one_thread(), torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        x = torch.randn(8, 197, 256)
        block = Block(256, 4, nn.LayerNorm).eval()
        rms, unified = (Block(256, 4, nn.LayerNorm).eval() for _ in range(2))
        replace_norm(rms, "rms", eps=1e-5)
        replace_norm(unified, "unified")
        fused, _ = fuse_norms(unified, x)
        arms = {LN: block, "RMS norm": rms, UN: unified, "unified, fused": fused}
        times: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(repeats + 1):
            for name, model in arms.items():
                start = time.process_time()
                model(x)
                times[name].append(1e3 * (time.process_time() - start))
    return {name: row[1:] for name, row in times.items()}  # the first round warms up


# --- the experiment ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Results:
    """Runs by arm and whether outliers were there, one a seed, and the times of inference, one a round."""

    plan: Plan
    runs: Mapping[tuple[str, bool], list[Run]]
    times: Mapping[str, list[float]]

    def accuracy(self, arm: str, stressed: bool = False) -> list[float]:
        """Return test accuracies in per cent."""
        return [run.accuracy for run in self.runs[arm, stressed]]

    def lost(self, arm: str) -> PairedComparison:
        """Compare an arm with outliers to itself without."""
        return compare_paired(self.accuracy(arm), self.accuracy(arm, True), lower_is_better=False)

    def speed_up(self, name: str) -> float:
        """Return the time with layer norm by the time with another, the median of the rounds."""
        return statistics.median(a / b for a, b in zip(self.times[LN], self.times[name], strict=True))


def experiment(budget: Budget, seeds: Sequence[int], progress: Progress) -> Results:
    """Measure inference while nothing else runs, then train everything."""
    plan = PLANS[budget]
    progress(0.0, "inference")
    times = inference_times(plan.repeats, seeds[0])
    runs = run_grid(
        lambda cell, seed: train(*cell, plan.steps, seed),
        [*((arm, False) for arm in CLEAN_ARMS), *((arm, True) for arm in STRESSED_ARMS)],
        seeds,
        part_of(progress, 0.05, 1),
        plan.n_jobs,
        lambda cell: f"digits{', outliers' if cell[1] else ''}, {cell[0]}",
    )
    return Results(plan, runs, times)


# --- the claims --------------------------------------------------------------------------------------------------


@claim(
    "parity",
    "With unified norms a Transformer is as accurate as with layer norms.",
    paper="on par on ImageNet, CIFAR and in translation",
    protocol="Test accuracy with the filter, as the paper sets it for images, minus that with layer norm, in points; "
    "far below: fraction of the seeds with more than 3 points less.",
    reproduced=at_least("difference", -1.5),
    refuted=at_least("far_below", 2 / 3 - 1e-9),
    over_seeds=["difference", "far_below"],
)
def parity(results: Results) -> Measured:
    ln, un, plain = (results.accuracy(arm) for arm in (LN, FILTERED, UN))
    paired = compare_paired(ln, un, lower_is_better=False)
    words = (
        f"test accuracy is {paired.mean_treated:.1f} % with unified norm and filter, {np.mean(plain):.1f} % without "
        f"filter, {paired.mean_control:.1f} % with layer norm: {_points(paired)}"
    )
    by_seed = {"difference": np.subtract(un, ln), "far_below": np.less(un, np.subtract(ln, 3))}
    return Measured(words, {"difference": paired.difference, "far_below": by_seed["far_below"].mean()}, by_seed)


@claim(
    "outliers",
    "The filter keeps outliers in the activations from doing harm.",
    paper="figures only",
    protocol="One image of a twentieth of the batches times 30. Lost: points that this costs with the filter (which "
    "lets skipped steps leave no trace), and with the published algorithm without filter (unfiltered).",
    rule=all_or_none(at_most("lost", 2), below("lost", "lost_unfiltered"), over_seeds=["lost", "lost_unfiltered"]),
)
def outliers(results: Results) -> Measured:
    filtered, unfiltered, published = results.lost(FILTERED), results.lost(UN), results.accuracy(PUBLISHED, True)
    words = (
        f"the accuracy with the filter changes from {filtered.mean_control:.1f} to {filtered.mean_treated:.1f} % "
        f"({_points(filtered)}), without filter from {unfiltered.mean_control:.1f} to {unfiltered.mean_treated:.1f} % "
        f"({_points(unfiltered)}); with the published filter it ends at {np.mean(published):.1f} %"
    )
    numbers = {"lost": -filtered.difference, "lost_unfiltered": -unfiltered.difference}
    by_seed = {
        name: np.subtract(results.accuracy(arm), results.accuracy(arm, True))
        for name, arm in (("lost", FILTERED), ("lost_unfiltered", UN))
    }
    return Measured(words, numbers, by_seed)


@claim(
    "batch-norm",
    "Plain batch norm degrades or collapses where unified norm trains.",
    paper="degrades or does not converge",
    protocol="How many points batch norm ends below layer norm, without and with outliers.",
    reproduced=above("below", 3) & above("below_with_outliers", 3),
    refuted=at_most("below", 1.5) & at_most("below_with_outliers", 1.5),
    over_seeds=["below", "below_with_outliers"],
)
def batch_norm(results: Results) -> Measured:
    (bn, ln), (bn_stressed, ln_stressed) = (
        [float(np.mean(results.accuracy(arm, stressed))) for arm in (BN, LN)] for stressed in (False, True)
    )
    words = (
        f"batch norm has {bn:.1f} % where layer norm has {ln:.1f} %, with outliers {bn_stressed:.1f} % and "
        f"{ln_stressed:.1f} %"
    )
    numbers = {"below": ln - bn, "below_with_outliers": ln_stressed - bn_stressed}
    by_seed = {
        name: np.subtract(results.accuracy(LN, stressed), results.accuracy(BN, stressed))
        for name, stressed in (("below", False), ("below_with_outliers", True))
    }
    return Measured(words, numbers, by_seed)


@claim(
    "inference",
    "Folded into the linear maps, unified norm makes inference faster than layer norm does.",
    paper="31 % faster on a GPU",
    protocol="Time of a block (width 256, 8 x 197 positions, CPU, one thread), layer norm by folded, median of ratios; "
    "what is reproduced is the kind of the effect.",
    reproduced=at_least("ratio", 1),
    over_seeds=["ratio"],
    unit="rounds",
)
def inference(results: Results) -> Measured:
    fused, unfused, rms = (results.speed_up(name) for name in ("unified, fused", UN, "RMS norm"))
    words = (
        f"a block with folded unified norms is {fused:.2f} times as fast as with layer norms (not folded "
        f"{unfused:.2f}, RMS norm {rms:.2f}); the paper has 1.31 on a GPU"
    )
    times = [np.array(results.times[name]) for name in (LN, "unified, fused")]
    _, interval = bootstrap_over_seeds(lambda ln, un: float(np.median(ln / un)), *times, positive=True)
    return Measured(words, {"ratio": fused}, intervals={"ratio": interval})


def _points(paired: PairedComparison) -> str:
    return f"{paired.difference:+.1f} points, {interval(*paired.interval, '+.1f')}"


# --- the report --------------------------------------------------------------------------------------------------


def present(results: Results, claims: Mapping[str, ClaimResult]) -> Presentation:
    """Put figure, tables and summary together."""
    figure = _figure(results)
    accuracy = seed_table(
        "Accuracy",
        ["norm", "outliers"],
        {(arm, "yes" if stressed else ""): results.accuracy(arm, stressed) for arm, stressed in results.runs},
        "test, %",
        "Steps skipped are summed over the seven norms of a network, mean over seeds.",
        {"steps skipped": [float(np.mean([run.skipped for run in runs])) for runs in results.runs.values()]},
    )
    rows = [[name, statistics.median(times), results.speed_up(name)] for name, times in results.times.items()]
    columns = ["norm", "ms", "layer norm's time by this"]
    times = Table("Inference of a block", columns, rows, "Median of the rounds.")
    summary = f"On digits {claims['parity'].text}. With outliers {claims['outliers'].text}."
    return Presentation(
        summary, [figure, accuracy, times, _fluctuation_table(results), _notes(results.plan)], figure.figure
    )


def _figure(results: Results) -> Figure:
    arms = {arm + (", outliers" if stressed else ""): results.accuracy(arm, stressed) for arm, stressed in results.runs}
    means = {label: float(np.mean(values)) for label, values in arms.items()}
    ranges = {label: (min(values), max(values)) for label, values in arms.items()}
    return bar_chart("Test accuracy, mean and range over seeds", means, "test accuracy, %", ranges)


def _fluctuation_table(results: Results) -> Table:
    names = [f"block {i + 1}, {part}" for i in range(BLOCKS) for part in ("attention", "MLP")] + ["last norm"]
    measured = [np.mean([fluctuation(run.moments) for run in results.runs[arm, False]], 0) for arm in (LN, FILTERED)]
    rows = [[name, *values] for name, values in zip(names, np.concatenate(measured, 1), strict=True)]
    measures = ("variation", "gap of means", "largest by median")
    columns = ["input of", *(f"{measure}, {arm}" for arm in (LN, FILTERED) for measure in measures)]
    caption = (
        "Second moments of channels over the last quarter of the steps, clean batches: standard deviation by mean "
        "(median channel), 1 - geometric by arithmetic mean (largest channel), largest by median step (largest "
        "channel). The paper's diagnosis is that they fluctuate strongly and have extreme outliers."
    )
    return Table("How the statistics move", columns, rows, caption)


def _notes(plan: Plan) -> Text:
    return Text(
        f"Pre-norm Transformers of {BLOCKS} blocks, width {WIDTH}, {HEADS} heads, on 16 patches of 2 x 2 pixels; "
        f"AdamW at {LR:g} for every norm, {WARM_UP} steps of warm-up, cosine, batch {BATCH}, {plan.steps} steps, of "
        "which a tenth without smoothing (the norms' own warm-up). With the published filter a skipped step still "
        "enters the running values. At this size norms over the batch train faster than layer norm, "
        "so parity means no more than not worse. Times are of this machine's CPU while the study ran.",
        title="Set-up",
    )


STUDY = Study(
    slug="unified-norm",
    title="Does a norm that is a constant scale at inference train as well as layer norm?",
    room="nn",
    paper=Paper(
        "Unified Normalization for Accelerating and Stabilizing Transformers", "Yang et al.", 2022, "2208.01313"
    ),
    seeds={"tiny": 2, "default": 3, "full": 5},
    experiment=experiment,
    claims=(parity, outliers, batch_norm, inference),
    present=present,
)
