"""Study of "Grokking at the Edge of Numerical Stability": rounding stops learning before it generalises.

Modular addition and sparse parity with small networks and no weight decay: gradients without their radial part
(OrthoGrad), cross entropy in float32 and float64, and StableMax in place of softmax.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from poise.evidence import PairedComparison, compare_paired
from poise.losses import stablemax_cross_entropy
from poise.optim import OrthoGrad
from poise.optim.geometry import cosine
from poise.report import Code, Figure, Table, Text, line_chart
from poise.studies.kit.networks import mlp
from poise.studies.study import Budget, Claim, ClaimVerdict, Measured, Measurement, Paper, Progress, Study

WIDTH = 200
LR = 0.01

Loss = Callable[..., Tensor]
Maker = Callable[[Iterable[nn.Parameter]], Optimizer]


@dataclass(frozen=True, slots=True)
class Task:
    """A table of inputs and classes, of which a part is trained on."""

    x: Float[Tensor, "n columns"]
    y: Int[Tensor, " n"]
    train: Int[Tensor, " chosen"]
    test: Int[Tensor, " others"]
    classes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What a budget buys: the modulus and the epochs of each part."""

    modulus: int = 47
    ortho_epochs: int = 300
    collapse_modulus: int = 31
    collapse_epochs: int = 2000
    parity_epochs: int = 1500


PLANS: dict[Budget, Plan] = {
    "tiny": Plan(modulus=11, ortho_epochs=20, collapse_modulus=11, collapse_epochs=40, parity_epochs=15),
    "default": Plan(),
    "full": Plan(modulus=113, collapse_epochs=4000, parity_epochs=5000),
}


# --- tasks -------------------------------------------------------------------------------------------------------


def addition(modulus: int, share: float, seed: int) -> Task:
    """Return all sums of two numbers modulo ``modulus``: two one-hot vectors, side by side, and the sum."""
    a, b = torch.cartesian_prod(torch.arange(modulus), torch.arange(modulus)).unbind(1)
    x = torch.cat([F.one_hot(a, modulus), F.one_hot(b, modulus)], 1).float()
    train, test = _divide(len(x), round(share * len(x)), seed)
    return Task(x, (a + b) % modulus, train, test, modulus)


def sparse_parity(seed: int, samples: int = 2000, parity_bits: int = 3, noise_bits: int = 40) -> Task:
    """Return random bits and the parity of the first few; half are trained on."""
    bits = torch.randint(2, (samples, parity_bits + noise_bits), generator=torch.Generator().manual_seed(seed))
    train, test = _divide(samples, samples // 2, seed)
    return Task(bits.float(), bits[:, :parity_bits].sum(1) % 2, train, test, 2)


def _divide(n: int, trained: int, seed: int) -> tuple[Tensor, Tensor]:
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return order[:trained], order[trained:]


# --- losses and what is measured of them ---------------------------------------------------------------------------


def cross_entropy64(logits: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
    """Cross entropy with a softmax in float64, of a network in float32."""
    return F.cross_entropy(logits.double(), y, reduction=reduction)


def collapsed(logits: Float[Tensor, "n classes"]) -> float:
    """Return the share of samples in whose softmax every competitor is absorbed: the sum of exponentials is 1."""
    terms = (logits - logits.amax(1, keepdim=True)).exp()
    return float((terms.sum(1) == 1).double().mean())


# --- training ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Run:
    """One network: what was measured every few epochs, and the share of collapsed samples at every epoch."""

    epochs: NDArray[np.float64]
    train: NDArray[np.float64]
    test: NDArray[np.float64]
    zero_terms: NDArray[np.float64]
    alignment: NDArray[np.float64]
    collapse: NDArray[np.float64]

    @property
    def alignment_after_fit(self) -> float:
        """Largest cosine between the last layer and its descent direction once all training samples are right."""
        fitted = np.flatnonzero(self.train == 1)
        return float(self.alignment[fitted[0] :].max()) if len(fitted) else 0.0


def train(task: Task, make: Maker, loss: Loss, epochs: int, seed: int, every: int = 10) -> Run:
    """Train a network without biases on the full batch.

    Args:
        task: what is learned.
        make: makes the optimizer.
        loss: called with logits, classes and ``reduction``.
        epochs: number of steps.
        seed: seed of the initial weights.
        every: epochs between two measurements; the last epoch is always measured.
    """
    model = _network(task, seed)
    head = list(model.parameters())[-1]
    optimizer = make(model.parameters())
    x, y = task.x[task.train], task.y[task.train]
    rows, collapse = [], np.empty(epochs)
    for epoch in range(epochs):
        optimizer.zero_grad()
        logits = model(x)
        terms = loss(logits, y, reduction="none")
        terms.mean().backward()
        seen = logits.detach().double() if terms.dtype == torch.float64 else logits.detach()
        collapse[epoch] = collapsed(seen)
        if epoch % every == 0 or epoch == epochs - 1:
            assert head.grad is not None
            zero, along = float((terms == 0).double().mean()), float(cosine(head.detach(), -head.grad))
            rows.append((epoch, _accuracy(seen, y), _test_accuracy(model, task), zero, along))
        optimizer.step()
    at, fit, tested, zeros, cosines = np.array(rows, dtype=np.float64).T
    return Run(at, fit, tested, zeros, cosines, collapse)


def _network(task: Task, seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return mlp((task.x.shape[1], WIDTH, WIDTH, task.classes), nn.ReLU, bias=False)


@torch.no_grad()
def _test_accuracy(model: nn.Module, task: Task) -> float:
    return _accuracy(model(task.x[task.test]), task.y[task.test])


def _accuracy(logits: Tensor, y: Tensor) -> float:
    return float((logits.argmax(1) == y).double().mean())


# The arms of the three parts. The authors' runs gave OrthoGrad's AdamW torch's own betas and epsilon; the smaller
# epsilons keep Adam itself from stopping before the softmax does.
ORTHO_ARMS: Mapping[str, Maker] = {
    "OrthoGrad(AdamW)": lambda p: OrthoGrad(AdamW(p, LR, weight_decay=0.0)),
    "AdamW": lambda p: AdamW(p, LR, weight_decay=0.0),
    "AdamW, decay 1": lambda p: AdamW(p, LR, weight_decay=1.0),
}
COLLAPSE_ARMS: Mapping[str, Loss] = {"softmax, float32": F.cross_entropy, "softmax, float64": cross_entropy64}
PARITY_ARMS: Mapping[str, Loss] = {"cross entropy": F.cross_entropy, "StableMax": stablemax_cross_entropy}


def _collapse_optimizer(params: Iterable[nn.Parameter]) -> AdamW:
    return AdamW(params, LR, betas=(0.9, 0.99), eps=1e-25, weight_decay=0.0)


def _parity_optimizer(params: Iterable[nn.Parameter]) -> AdamW:
    return AdamW(params, LR, betas=(0.9, 0.999), eps=1e-18, weight_decay=0.0)


# --- the claims --------------------------------------------------------------------------------------------------


def judge_ortho(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the worst seed with the projection and the best one without."""
    if n["ortho_min"] >= 0.85 and n["plain_max"] <= 0.05:
        return "reproduced"
    return "refuted" if n["plain_max"] >= 0.85 or n["ortho_min"] - n["plain_max"] < 0.2 else "partly"


def judge_collapse(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the largest shares of collapsed samples in both precisions, and the accuracy."""
    if n["float32_min"] >= 0.5 and n["float64_max"] < 0.05 and n["test_max"] <= 0.05:
        return "reproduced"
    return "refuted" if n["float32_min"] < 0.05 or n["float64_max"] >= n["float32_min"] else "partly"


def judge_stablemax(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by on how many seeds StableMax leads by 8 points, and whether any of its terms is zero."""
    if n["zero_terms"] > 0 or n["difference"] <= 0:
        return "refuted"
    return "reproduced" if 3 * n["seeds_won"] >= 2 * n["seeds"] else "partly"


def judge_alignment(n: Mapping[str, float]) -> ClaimVerdict:
    """Decide by the cosine of the seed where it is lowest."""
    return "reproduced" if n["cosine_min"] > 0.5 else "refuted" if n["cosine_min"] < 0.2 else "partly"


CLAIMS = (
    Claim(
        "orthograd",
        "Without the gradient's part along the weights, networks generalise where AdamW without decay only memorises.",
        "addition modulo 113: all of the test set within 300 to 400 epochs; AdamW near none",
        "Test accuracy after 300 epochs, modulo 47. Reproduced if at least 85 % on every seed, and at most 5 % with "
        "AdamW; refuted if AdamW generalises too or the two are less than 20 points apart.",
        judge_ortho,
    ),
    Claim(
        "softmax-collapse",
        "Float absorption sets the gradients of well-fitted samples to exactly zero; more precision delays it.",
        "figures only",
        "Largest share of collapsed samples over 2000 epochs, modulo 31. Reproduced if at least 50 % in float32 and "
        "below 5 % in float64 on every seed, with at most 5 % test accuracy; refuted if float32 stays below 5 % or "
        "float64 collapses as much.",
        judge_collapse,
    ),
    Claim(
        "stablemax",
        "StableMax does not collapse and goes on to generalise without regularisation.",
        "sparse parity: generalises; figures only",
        "Test accuracy after 1500 epochs. Reproduced if it leads cross entropy by 8 points on two of three seeds and "
        "no term of its loss is zero; refuted if terms are zero or it does not lead on average.",
        judge_stablemax,
    ),
    Claim(
        "naive-loss-minimisation",
        "Once all training samples are right, gradients align with the weights: logits are only scaled up.",
        "cosine up to 0.9 in output layers",
        "Largest cosine of the last layer and its descent direction after the fit, AdamW, modulo 47. Reproduced if "
        "above 0.5 on every seed, refuted if below 0.2 on one.",
        judge_alignment,
    ),
)


@dataclass(frozen=True, slots=True)
class Results:
    """Runs by arm, one a seed, of the three parts."""

    ortho: Mapping[str, list[Run]]
    collapse: Mapping[str, list[Run]]
    parity: Mapping[str, list[Run]]


def measure(budget: Budget, seeds: Sequence[int], progress: Progress) -> Measurement:
    """Run the three parts and put what came out beside the claims."""
    plan = PLANS[budget]
    results = _train_all(plan, seeds, progress)
    parity = _compare(results.parity, "cross entropy", "StableMax")
    claims = {
        "orthograd": _measure_ortho(results.ortho, plan),
        "softmax-collapse": _measure_collapse(results.collapse),
        "stablemax": _measure_stablemax(results.parity, parity),
        "naive-loss-minimisation": _measure_alignment(results.ortho["AdamW"]),
    }
    figure = _accuracy_figure("Test accuracy, modular addition", results.ortho)
    blocks: list[Text | Table | Figure | Code] = [
        figure,
        _collapse_figure(results.collapse),
        _accuracy_figure("Test accuracy, sparse parity", results.parity),
        _table(results, seeds),
        _notes(plan),
    ]
    summary = f"{claims['orthograd'].ours}. {claims['softmax-collapse'].ours}."
    return Measurement(claims, summary, blocks, figure.figure)


def _train_all(plan: Plan, seeds: Sequence[int], progress: Progress) -> Results:
    jobs: list[tuple[str, str, Callable[[int], Run]]] = [
        *(("ortho", name, partial(_ortho_run, plan, make)) for name, make in ORTHO_ARMS.items()),
        *(("collapse", name, partial(_collapse_run, plan, loss)) for name, loss in COLLAPSE_ARMS.items()),
        *(("parity", name, partial(_parity_run, plan, loss)) for name, loss in PARITY_ARMS.items()),
    ]
    found: dict[str, dict[str, list[Run]]] = {"ortho": {}, "collapse": {}, "parity": {}}
    for i, (part, name, run) in enumerate(jobs):
        found[part][name] = []
        for k, seed in enumerate(seeds):
            progress((i + k / len(seeds)) / len(jobs), f"{name}, seed {seed}")
            found[part][name].append(run(seed))
    progress(1.0, "done")
    return Results(**found)


def _ortho_run(plan: Plan, make: Maker, seed: int) -> Run:
    return train(addition(plan.modulus, 0.4, seed), make, F.cross_entropy, plan.ortho_epochs, seed)


def _collapse_run(plan: Plan, loss: Loss, seed: int) -> Run:
    task = addition(plan.collapse_modulus, 0.5, seed)
    return train(task, _collapse_optimizer, loss, plan.collapse_epochs, seed, every=50)


def _parity_run(plan: Plan, loss: Loss, seed: int) -> Run:
    return train(sparse_parity(seed), _parity_optimizer, loss, plan.parity_epochs, seed, every=25)


def _compare(runs: Mapping[str, list[Run]], control: str, treated: str) -> PairedComparison:
    a, b = ([100 * run.test[-1] for run in runs[name]] for name in (control, treated))
    return compare_paired(a, b, lower_is_better=False)


def _measure_ortho(runs: Mapping[str, list[Run]], plan: Plan) -> Measured:
    ortho, plain, decay = ([run.test[-1] for run in runs[name]] for name in ORTHO_ARMS)
    words = (
        f"test accuracy after {plan.ortho_epochs} epochs {_percent(ortho)} with OrthoGrad, {_percent(plain)} with "
        f"AdamW, {_percent(decay)} with decay 1"
    )
    return Measured(words, {"ortho_min": min(ortho), "plain_max": max(plain), "decay_max": max(decay)})


def _measure_collapse(runs: Mapping[str, list[Run]]) -> Measured:
    narrow, wide = ([run.collapse.max() for run in runs[name]] for name in COLLAPSE_ARMS)
    test = [run.test[-1] for found in runs.values() for run in found]
    words = (
        f"at most {_percent(narrow)} of samples collapsed in float32, {_percent(wide)} in float64; test accuracy "
        f"{_percent(test)}"
    )
    return Measured(words, {"float32_min": min(narrow), "float64_max": max(wide), "test_max": max(test)})


def _measure_stablemax(runs: Mapping[str, list[Run]], paired: PairedComparison) -> Measured:
    plain, stable = (np.array([run.test[-1] for run in runs[name]]) for name in PARITY_ARMS)
    zero = {name: max(run.zero_terms.max() for run in found) for name, found in runs.items()}
    low, high = paired.interval
    words = (
        f"test accuracy {_percent(stable)} with StableMax, {_percent(plain)} with cross entropy, difference "
        f"{paired.difference:+.1f} points (95 % interval {low:+.1f} to {high:+.1f}); zero terms at most "
        f"{100 * zero['StableMax']:.0f} % and {100 * zero['cross entropy']:.0f} %"
    )
    numbers = {
        "seeds": float(len(plain)),
        "seeds_won": float((stable - plain >= 0.08).sum()),
        "difference": paired.difference,
        "zero_terms": zero["StableMax"],
    }
    return Measured(words, numbers)


def _measure_alignment(runs: Sequence[Run]) -> Measured:
    cosines = [run.alignment_after_fit for run in runs]
    return Measured("cosines " + ", ".join(f"{c:.2f}" for c in cosines), {"cosine_min": min(cosines)})


def _percent(values: Iterable[float]) -> str:
    return " / ".join(f"{100 * value:.1f}" for value in values) + " %"


def _accuracy_figure(title: str, runs: Mapping[str, list[Run]]) -> Figure:
    curves = {name: (found[0].epochs, np.mean([run.test for run in found], 0)) for name, found in runs.items()}
    bands = {
        name: (found[0].epochs, np.min([run.test for run in found], 0), np.max([run.test for run in found], 0))
        for name, found in runs.items()
    }
    return line_chart(title, curves, "epoch", "test accuracy, mean and range over seeds", bands=bands)


def _collapse_figure(runs: Mapping[str, list[Run]]) -> Figure:
    curves = {name: np.mean([run.collapse for run in found], 0) for name, found in runs.items()}
    series = {name: (np.arange(len(curve)), curve) for name, curve in curves.items()}
    return line_chart("Collapsed samples", series, "epoch", "share of training samples, mean over seeds")


def _table(results: Results, seeds: Sequence[int]) -> Table:
    rows: list[list[object]] = []
    for part, runs in (("addition", results.ortho), ("collapse", results.collapse), ("parity", results.parity)):
        for name, found in runs.items():
            for seed, run in zip(seeds, found, strict=True):
                last = [100 * run.train[-1], 100 * run.test[-1], 100 * run.collapse.max(), 100 * run.zero_terms.max()]
                rows.append([part, name, seed, *last, run.alignment_after_fit])
    columns = ["part", "arm", "seed", "train, %", "test, %", "most collapsed, %", "most zero terms, %", "cosine"]
    caption = (
        "Cosine: the largest one between the last layer and its descent direction after all training samples are "
        "right; 0 if they never are. With StableMax, collapse says what softmax would do with its logits."
    )
    return Table("All runs", columns, rows, caption)


def _notes(plan: Plan) -> Text:
    return Text(
        f"Networks have two hidden layers of {WIDTH} and no biases, the learning rate is {LR}, nothing decays unless "
        f"said. The paper's generalisation of plain StableMax on modular addition takes 80 000 to 100 000 epochs; here "
        f"StableMax is tried on sparse parity for {plan.parity_epochs}. Weight decay of 1 needs longer than "
        f"{plan.ortho_epochs} epochs.",
        title="How to read it",
    )


STUDY = Study(
    slug="grokking-stability",
    title="Does rounding stop networks from learning before they generalise?",
    room="losses",
    paper=Paper("Grokking at the Edge of Numerical Stability", "Prieto et al.", 2025, "2501.04697"),
    claims=CLAIMS,
    seeds={"tiny": 2, "default": 3, "full": 5},
    measure=measure,
)
