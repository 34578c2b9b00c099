"""Study of "Grokking at the Edge of Numerical Stability": rounding stops learning before it generalises.

Modular addition and sparse parity with small networks and no weight decay: gradients without their radial part
(OrthoGrad), cross entropy in float32 and float64, and StableMax in place of softmax.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from poise.evidence import compare_paired
from poise.losses import stablemax_cross_entropy
from poise.nn.mlp import seeded_mlp
from poise.optim import OrthoGrad
from poise.optim.geometry import cosine
from poise.report import Figure, Table, Text, line_chart
from poise.studies.kit import Budget, ClaimResult, Measured, Paper, Presentation, Progress, Study, claim
from poise.studies.kit.grid import part_of, run_grid
from poise.studies.kit.rules import above, at_least, at_most, below, where
from poise.studies.kit.tables import seed_chart
from poise.studies.kit.words import difference, listed

WIDTH, LR = 200, 0.01

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


def addition(modulus: int, fraction: float, seed: int) -> Task:
    """Return all sums of two numbers modulo ``modulus``: two one-hot vectors, side by side, and the sum."""
    a, b = torch.cartesian_prod(torch.arange(modulus), torch.arange(modulus)).unbind(1)
    x = torch.cat([F.one_hot(a, modulus), F.one_hot(b, modulus)], 1).float()
    train, test = _divide(len(x), round(fraction * len(x)), seed)
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
    """Return the fraction of samples in whose softmax every competitor is absorbed: the sum of exponentials is 1."""
    terms = (logits - logits.amax(1, keepdim=True)).exp()
    return float((terms.sum(1) == 1).double().mean())


# --- training ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Run:
    """One network: what was measured every few epochs, and the fraction of collapsed samples at every epoch."""

    collapse: NDArray[np.float64]
    epochs: NDArray[np.float64]
    train: NDArray[np.float64]
    test: NDArray[np.float64]
    zero_terms: NDArray[np.float64]
    alignment: NDArray[np.float64]

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
    model = seeded_mlp((task.x.shape[1], WIDTH, WIDTH, task.classes), seed, nn.ReLU, bias=False)
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
            with torch.no_grad():
                tested = _accuracy(model(task.x[task.test]), task.y[task.test])
            rows.append((epoch, _accuracy(seen, y), tested, zero, along))
        optimizer.step()
    return Run(collapse, *np.array(rows, dtype=np.float64).T)


def _accuracy(logits: Tensor, y: Tensor) -> float:
    return float((logits.argmax(1) == y).double().mean())


def adamw(beta2: float, eps: float) -> Maker:
    """Return what makes AdamW without decay."""
    return lambda p: AdamW(p, LR, betas=(0.9, beta2), eps=eps, weight_decay=0.0)


# The arms of the three parts. The authors' runs gave OrthoGrad's AdamW torch's own betas and epsilon; the smaller
# epsilons of the other parts keep Adam itself from stopping before the softmax does.
ORTHO_ARMS: Mapping[str, Maker] = {
    "OrthoGrad(AdamW)": lambda p: OrthoGrad(AdamW(p, LR, weight_decay=0.0)),
    "AdamW": lambda p: AdamW(p, LR, weight_decay=0.0),
    "AdamW, decay 1": lambda p: AdamW(p, LR, weight_decay=1.0),
}
COLLAPSE_ARMS: Mapping[str, Loss] = {"softmax, float32": F.cross_entropy, "softmax, float64": cross_entropy64}
PARITY_ARMS: Mapping[str, Loss] = {"cross entropy": F.cross_entropy, "StableMax": stablemax_cross_entropy}


# --- the experiment ----------------------------------------------------------------------------------------------

Runs = Mapping[str, list[Run]]


@dataclass(frozen=True, slots=True)
class Results:
    """Runs by arm, one a seed, of the three parts."""

    plan: Plan
    seeds: Sequence[int]
    ortho: Runs
    collapse: Runs
    parity: Runs


def experiment(budget: Budget, seeds: Sequence[int], progress: Progress) -> Results:
    """Run the three parts."""
    plan = PLANS[budget]

    def ortho(arm: str, seed: int) -> Run:
        task = addition(plan.modulus, 0.4, seed)
        return train(task, ORTHO_ARMS[arm], F.cross_entropy, plan.ortho_epochs, seed)

    def collapse(arm: str, seed: int) -> Run:
        task = addition(plan.collapse_modulus, 0.5, seed)
        return train(task, adamw(0.99, 1e-25), COLLAPSE_ARMS[arm], plan.collapse_epochs, seed, every=50)

    def parity(arm: str, seed: int) -> Run:
        task = sparse_parity(seed)
        return train(task, adamw(0.999, 1e-18), PARITY_ARMS[arm], plan.parity_epochs, seed, every=25)

    return Results(
        plan,
        seeds,
        run_grid(ortho, list(ORTHO_ARMS), seeds, part_of(progress, 0, 0.4)),
        run_grid(collapse, list(COLLAPSE_ARMS), seeds, part_of(progress, 0.4, 0.7)),
        run_grid(parity, list(PARITY_ARMS), seeds, part_of(progress, 0.7, 1)),
    )


# --- the claims --------------------------------------------------------------------------------------------------


@claim(
    "orthograd",
    "Without the gradient's part along the weights, networks generalise where AdamW without decay only memorises.",
    paper="addition modulo 113: all of the test set within 300 to 400 epochs; AdamW near none",
    protocol="Test accuracy after 300 epochs, modulo 47: the lowest of all seeds with OrthoGrad (ortho min), the "
    "highest with AdamW (plain max); ortho and plain: the means.",
    reproduced=at_least("ortho_min", 0.85)
    & at_most("plain_max", 0.05)
    & at_least("ortho", 0.85)
    & at_most("plain", 0.05),
    refuted=at_least("plain", 0.85)
    | where("ortho - plain < 0.2", ["ortho", "plain"], lambda n: n["ortho"] - n["plain"] < 0.2),
    over_seeds=["ortho", "plain"],
)
def orthograd(results: Results) -> Measured:
    ortho, plain, decay = ([run.test[-1] for run in results.ortho[name]] for name in ORTHO_ARMS)
    words = (
        f"test accuracy after {results.plan.ortho_epochs} epochs {_percent(ortho)} with OrthoGrad, {_percent(plain)} "
        f"with AdamW, {_percent(decay)} with decay 1"
    )
    numbers = {"ortho_min": min(ortho), "plain_max": max(plain), "decay_max": max(decay)}
    return Measured(words, numbers, {"ortho": ortho, "plain": plain})


@claim(
    "softmax-collapse",
    "Float absorption sets the gradients of well-fitted samples to exactly zero; more precision delays it.",
    paper="figures only",
    protocol="Largest fraction of collapsed samples over 2000 epochs, modulo 31: the smallest of all seeds in float32, "
    "the largest in float64 (float32 and float64: the means); and the largest test accuracy (test: the mean over seeds "
    "of the larger of both).",
    reproduced=at_least("float32_min", 0.5)
    & below("float64_max", 0.05)
    & at_most("test_max", 0.05)
    & at_least("float32", 0.5)
    & below("float64", 0.05)
    & at_most("test", 0.05),
    refuted=below("float32", 0.05) | at_least("float64", "float32"),
    over_seeds=["float32", "float64", "test"],
)
def softmax_collapse(results: Results) -> Measured:
    narrow, wide = ([run.collapse.max() for run in results.collapse[name]] for name in COLLAPSE_ARMS)
    tests = np.array([[run.test[-1] for run in runs] for runs in results.collapse.values()])
    words = (
        f"at most {_percent(narrow)} of samples collapsed in float32, {_percent(wide)} in float64; test accuracy "
        f"{_percent(tests.ravel())}"
    )
    numbers = {"float32_min": min(narrow), "float64_max": max(wide), "test_max": tests.max()}
    return Measured(words, numbers, {"float32": narrow, "float64": wide, "test": tests.max(0)})


@claim(
    "stablemax",
    "StableMax does not collapse and goes on to generalise without regularisation.",
    paper="sparse parity: generalises; figures only",
    protocol="Test accuracy after 1500 epochs in points, StableMax minus cross entropy: the mean, and the fraction of "
    "seeds with 8 points or more (won). Zero terms: largest fraction of samples whose StableMax loss is exactly zero.",
    reproduced=at_least("won", 2 / 3),
    refuted=above("zero_terms", 0) | at_most("difference", 0),
    over_seeds=["won", "difference"],
)
def stablemax(results: Results) -> Measured:
    plain, stable = (np.array([run.test[-1] for run in results.parity[name]]) for name in PARITY_ARMS)
    zero_plain, zero = (max(run.zero_terms.max() for run in results.parity[name]) for name in PARITY_ARMS)
    paired = compare_paired(100 * plain, 100 * stable, lower_is_better=False)
    words = (
        f"test accuracy {_percent(stable)} with StableMax, {_percent(plain)} with cross entropy, difference "
        f"{difference(paired, '+.1f', 'points')}; zero terms at most {100 * zero:.0f} % and {100 * zero_plain:.0f} %"
    )
    won = stable - plain >= 0.08
    numbers = {"seeds": len(plain), "seeds_won": won.sum(), "difference": paired.difference, "zero_terms": zero}
    return Measured(words, numbers, {"won": won, "difference": 100 * (stable - plain)})


@claim(
    "naive-loss-minimisation",
    "Once all training samples are right, gradients align with the weights: logits are only scaled up.",
    paper="cosine up to 0.9 in output layers",
    protocol="AdamW, modulo 47. Largest cosine of the last layer and its descent direction after the fit, the smallest "
    "of all seeds, and the mean.",
    reproduced=above("cosine_min", 0.5) & above("cosine", 0.5, "mean"),
    refuted=below("cosine", 0.2, "mean"),
    over_seeds=["cosine"],
)
def naive_loss_minimisation(results: Results) -> Measured:
    cosines = [run.alignment_after_fit for run in results.ortho["AdamW"]]
    return Measured(f"cosines {listed(cosines, '.2f')}", {"cosine_min": min(cosines)}, {"cosine": cosines})


def _percent(values: Iterable[float]) -> str:
    return " / ".join(f"{100 * value:.1f}" for value in values) + " %"


# --- the report --------------------------------------------------------------------------------------------------


def present(results: Results, claims: Mapping[str, ClaimResult]) -> Presentation:
    """Put figures, table and summary together."""
    figure = _accuracy_figure("Test accuracy, modular addition", results.ortho)
    collapse = {name: np.mean([run.collapse for run in runs], 0) for name, runs in results.collapse.items()}
    lines = {name: (np.arange(len(curve)), curve) for name, curve in collapse.items()}
    return Presentation(
        f"{claims['orthograd'].text}. {claims['softmax-collapse'].text}.",
        [
            figure,
            line_chart("Collapsed samples", lines, "epoch", "fraction of training samples, mean over seeds"),
            _accuracy_figure("Test accuracy, sparse parity", results.parity),
            _table(results),
            _notes(results.plan),
        ],
        figure.figure,
    )


def _accuracy_figure(title: str, runs: Runs) -> Figure:
    curves = {name: (of_arm[0].epochs, [run.test for run in of_arm]) for name, of_arm in runs.items()}
    return seed_chart(title, curves, "epoch", "test accuracy, mean and range over seeds")


def _table(results: Results) -> Table:
    parts = {"addition": results.ortho, "collapse": results.collapse, "parity": results.parity}
    rows = []
    for part, runs in parts.items():
        for name, of_arm in runs.items():
            for seed, run in zip(results.seeds, of_arm, strict=True):
                fractions = run.train[-1], run.test[-1], run.collapse.max(), run.zero_terms.max()
                rows.append([part, name, seed, *(100 * f for f in fractions), run.alignment_after_fit])
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
    seeds={"tiny": 2, "default": 3, "full": 5},
    experiment=experiment,
    claims=(orthograd, softmax_collapse, stablemax, naive_loss_minimisation),
    present=present,
)
