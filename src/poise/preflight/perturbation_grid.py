"""Train a model as it is meant to be, then with one setting off at a time: what would it not survive."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from joblib import Parallel, delayed
from joblib.parallel import get_active_backend
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from poise.curvature import Objective, as_objective
from poise.optim import WarmupCosineLR
from poise.report import Evidence, Figure, Finding, Report, Severity, Table, Text, line_chart
from poise.report.words import number

CONDITIONS = ("base", "lr*5", "init*0.1", "no_warmup")
_LAST = 0.25  # the final loss is the mean over this share of the steps
_KEPT = 0.5  # less than this share of the fall in loss of the base counts as failing
_FACTOR = re.compile(r"(lr|init)\*(.+)")

LossFn = Callable[..., Tensor]


@dataclass(frozen=True, slots=True)
class Perturbation:
    """What is different from the base.

    Args:
        lr: factor on the learning rate.
        init: factor on the initial weights.
        warmup: whether there is a warm-up.
    """

    lr: float = 1.0
    init: float = 1.0
    warmup: bool = True

    @classmethod
    def parse(cls, condition: str) -> Perturbation:
        """Read ``"base"``, ``"no_warmup"``, ``"lr*5"``, ``"init*0.1"``, or several of them with commas between.

        Raises:
            ValueError: if a part is none of these, or a factor is not a positive number.
        """
        settings: dict[str, Any] = {}
        for part in (part.strip() for part in condition.split(",")):
            factor = _FACTOR.fullmatch(part)
            if factor is not None:
                settings[factor[1]] = _positive(factor[2], condition)
            elif part == "no_warmup":
                settings["warmup"] = False
            elif part != "base":
                raise ValueError(
                    "conditions must be made of 'base', 'no_warmup', 'lr*FACTOR' and 'init*FACTOR' with commas "
                    f"between, got {condition!r}"
                )
        return cls(**settings)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train once: everything but condition and seed.

    Args:
        make_model: returns a fresh model; its weights come from torch's global generator.
        make_loader: returns batches; their order comes from torch's global generator. It is begun again when it ends.
        loss_fn: a torch criterion for batches ``(inputs, targets)``, or ``loss_fn(model, batch)``.
        optimizer: called with the parameters and ``lr=``.
        lr: peak learning rate.
        steps: optimizer steps.
        warmup: steps of linear warm-up from zero, before a cosine to zero.
        clip: largest norm of the whole gradient; ``None`` for no limit.
    """

    make_model: Callable[[], nn.Module]
    make_loader: Callable[[], Iterable[Any]]
    loss_fn: Objective | nn.Module | LossFn
    optimizer: Callable[..., Optimizer]
    lr: float
    steps: int
    warmup: int
    clip: float | None

    def train(self, condition: str, seed: int) -> Float[np.ndarray, " steps"]:
        """Train one model and return its training losses; NaN from the step on at which one was not finite.

        The initial weights and the batches of a seed are the same under all conditions. Torch's global random state is
        as before when this returns.
        """
        perturbation, objective = Perturbation.parse(condition), as_objective(self.loss_fn)
        losses = np.full(self.steps, math.nan)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = self.make_model()
            scale_weights(model, perturbation.init)
            parameters = [p for p in model.parameters() if p.requires_grad]
            optimizer = self.optimizer(parameters, lr=self.lr * perturbation.lr)
            warmup = self.warmup if perturbation.warmup else 0
            schedule = WarmupCosineLR(optimizer, warmup, self.steps, min_ratio=0.0)
            torch.manual_seed(seed)  # whatever the model drew, the batches are the same
            for step, batch in enumerate(_first(self.make_loader, self.steps)):
                loss = objective.loss(model, batch)
                if not math.isfinite(value := loss.item()):
                    break
                losses[step] = value
                optimizer.zero_grad()
                loss.backward()
                if self.clip is not None:
                    nn.utils.clip_grad_norm_(parameters, self.clip)
                optimizer.step()
                schedule.step()
        return losses


@torch.no_grad()
def scale_weights(model: nn.Module, factor: float) -> None:
    """Multiply every trainable parameter of two dimensions or more in place; gains and biases stay.

    Args:
        model: the model.
        factor: the factor on the standard deviation of its initial weights.
    """
    for parameter in model.parameters():
        if parameter.ndim >= 2 and parameter.requires_grad:
            parameter.mul_(factor)


def final_loss(losses: Float[np.ndarray, " steps"]) -> float:
    """Return the mean over the last quarter of a run; NaN if it diverged."""
    return float(_late(losses).mean())


def _late(losses: Float[np.ndarray, " steps"]) -> Float[np.ndarray, " late"]:
    return losses[-max(1, round(_LAST * len(losses))) :]


def perturbation_grid(
    make_model: Callable[[], nn.Module],
    make_loader: Callable[[], Iterable[Any]],
    loss_fn: Objective | nn.Module | LossFn = nn.functional.cross_entropy,
    conditions: Sequence[str] = CONDITIONS,
    seeds: int | Sequence[int] = 3,
    *,
    optimizer: Callable[..., Optimizer] = AdamW,
    lr: float = 1e-3,
    steps: int | None = None,
    warmup: int | None = None,
    clip: float | None = 1.0,
    n_jobs: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Train a model under each condition and report which it survives.

    A condition fails on a seed if the loss becomes infinite or NaN, or falls by less than half of what it falls under
    ``"base"``. Loss is that of training, averaged over the last quarter of the steps. The base itself fails if its loss
    falls by less than twice the standard deviation that it has there.

    Args:
        make_model: returns a fresh model; its weights must come from torch's global generator, which is seeded.
        make_loader: returns an iterable of batches, whose order must come from the same generator.
        loss_fn: a torch criterion for batches ``(inputs, targets)``, a ``poise.curvature.Supervised`` for others, or
            ``loss_fn(model, batch)``; the mean over the batch.
        conditions: ``"base"`` and others, made of ``"lr*FACTOR"``, ``"init*FACTOR"`` (every weight of two dimensions or
            more) and ``"no_warmup"``, with commas between to combine them: ``"init*0.1, no_warmup"``.
        seeds: how many seeds (0, 1, ...), or the seeds themselves.
        optimizer: called with the parameters and ``lr=``, e.g. ``functools.partial(AdamW, betas=(0.9, 0.95))``.
        lr: peak learning rate of the base.
        steps: optimizer steps of a run; the loader's length by default. A loader that ends is begun again.
        warmup: steps of linear warm-up in the base, before a cosine to zero; a tenth of ``steps`` by default.
        clip: largest norm of the gradient; ``None`` for no clipping.
        n_jobs: parallel runs, as in joblib; ``with joblib.parallel_config(...)`` chooses where.
        progress: called after each run with the runs done and the runs in all.

    Returns:
        A report with one row a condition: final loss by seed, change against the base, and whether it trains.

    Raises:
        ValueError: if a condition cannot be read or comes twice, ``"base"`` is missing, a number is out of range, the
            loader is empty, or it has no length and ``steps`` is not given.

    References:
        Wang et al., "Scale-Distribution Decoupling", 2025, arXiv:2502.15499, table 2.

    Example:
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> data = TensorDataset(torch.randn(64, 4), torch.randint(3, (64,)))
        >>> report = perturbation_grid(lambda: nn.Linear(4, 3), lambda: DataLoader(data, 16, shuffle=True), seeds=1)
        >>> [row[0] for row in report.blocks[0].rows]
        ['base', 'lr*5', 'init*0.1', 'no_warmup']
    """
    _check_conditions(conditions)
    used = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not used or len(set(used)) < len(used):
        raise ValueError(f"seeds must be at least one, and distinct, got {seeds!r}")
    recipe = _recipe(make_model, make_loader, loss_fn, optimizer, lr, steps, warmup, clip)
    grid = list(product(conditions, used))
    runs: dict[tuple[str, int], np.ndarray] = {}
    jobs = [delayed(recipe.train)(condition, seed) for condition, seed in grid]
    for key, losses in zip(grid, Parallel(n_jobs, return_as=_order(n_jobs))(jobs), strict=True):
        runs[key] = losses
        if progress is not None:
            progress(len(runs), len(grid))
    return _report({c: np.stack([runs[c, seed] for seed in used]) for c in conditions}, recipe, used)


# --- checking -------------------------------------------------------------------------------------------------------


def _positive(text: str, condition: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"conditions must have positive factors, got {text!r} in {condition!r}")
    return value


def _check_conditions(conditions: Sequence[str]) -> None:
    if isinstance(conditions, str):
        raise ValueError(f"conditions must be a sequence of texts, got the text {conditions!r}")
    for condition in conditions:
        Perturbation.parse(condition)
    if "base" not in conditions or len(set(conditions)) < len(conditions):
        raise ValueError(f"conditions must be distinct and include 'base', got {list(conditions)}")


def _recipe(
    make_model: Callable[[], nn.Module],
    make_loader: Callable[[], Iterable[Any]],
    loss_fn: Any,
    optimizer: Callable[..., Optimizer],
    lr: float,
    steps: int | None,
    warmup: int | None,
    clip: float | None,
) -> Recipe:
    count = _length(make_loader) if steps is None else steps
    rise = count // 10 if warmup is None else warmup
    if not (lr > 0 and math.isfinite(lr)):
        raise ValueError(f"lr must be positive and finite, got {lr!r}")
    if count < 1 or not 0 <= rise < count:
        raise ValueError(f"steps must be at least 1 and warmup in 0..steps - 1, got steps {count} and warmup {rise}")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be positive or None, got {clip!r}")
    return Recipe(make_model, make_loader, loss_fn, optimizer, lr, count, rise, clip)


def _length(make_loader: Callable[[], Iterable[Any]]) -> int:
    with torch.random.fork_rng():
        loader = make_loader()
    if not hasattr(loader, "__len__"):
        raise ValueError(f"steps must be given: the loader, a {type(loader).__name__}, has no length")
    return len(cast(Any, loader))


def _first(make_loader: Callable[[], Iterable[Any]], steps: int) -> Iterator[Any]:
    """The first batches of a loader that is begun again as often as needed."""
    left = steps
    while left:
        before = left
        for batch in make_loader():
            yield batch
            left -= 1
            if not left:
                return
        if left == before:
            raise ValueError("make_loader must return batches, got an empty loader")


def _order(n_jobs: int | None) -> str:
    # Some backends (multiprocessing, Ray) cannot hand results back one by one.
    streams = n_jobs == 1 or get_active_backend()[0].supports_return_generator
    return "generator" if streams else "list"


# --- the report -----------------------------------------------------------------------------------------------------

Runs = dict[str, Float[np.ndarray, "seeds steps"]]


@dataclass(frozen=True, slots=True)
class _Outcome:
    """How a condition ended, by seed."""

    condition: str
    final: Float[np.ndarray, " seeds"]
    failed: Bool[np.ndarray, " seeds"]

    @property
    def words(self) -> str:
        failed, seeds = int(self.failed.sum()), len(self.failed)
        return "trains" if not failed else f"fails on {failed} of {seeds} seeds" if seeds > 1 else "fails"


def _outcomes(runs: Runs) -> list[_Outcome]:
    finals = {condition: np.array([final_loss(run) for run in losses]) for condition, losses in runs.items()}
    base = runs["base"]
    fall = base[:, 0] - finals["base"]
    learned = fall > 2 * np.array([_late(run).std() for run in base])  # else it may be the noise of batches
    # A comparison with NaN is false: a run that diverged fails, and with a base that did not learn all do.
    return [_Outcome(c, final, ~((base[:, 0] - final >= _KEPT * fall) & learned)) for c, final in finals.items()]


def _report(runs: Runs, recipe: Recipe, seeds: Sequence[int]) -> Report:
    outcomes = _outcomes(runs)
    failing = [outcome for outcome in outcomes if outcome.failed.any()]
    columns = ["condition", *(f"seed {seed}" for seed in seeds), "mean", "change", "outcome"]
    base = outcomes[[outcome.condition for outcome in outcomes].index("base")].final
    rows: list[list[object]] = [
        [o.condition, *map(_shown, o.final), _shown(o.final.mean()), _shown((o.final - base).mean()), o.words]
        for o in outcomes
    ]
    caption = (
        f"Training loss, mean over the last quarter of {recipe.steps} steps; 'change' is the mean difference to the "
        "base. A run fails that diverges or whose loss falls by less than half of what the base's does."
    )
    meta = {"seeds": list(seeds), "conditions": list(runs), "lr": recipe.lr, "steps": recipe.steps}
    return Report(
        "Perturbation grid",
        _summary(outcomes, failing),
        findings=[_finding(outcome, base) for outcome in failing],
        blocks=[Table("Final losses", columns, rows, caption), _figure(runs), _setting(recipe)],
        meta=meta | {"final_losses": {o.condition: [_shown(value) for value in o.final] for o in outcomes}},
        verdict="fails under " + ", ".join(o.condition for o in failing) if failing else "trains under all conditions",
    )


def _shown(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _summary(outcomes: Sequence[_Outcome], failing: Sequence[_Outcome]) -> str:
    base = next(outcome for outcome in outcomes if outcome.condition == "base")
    if base.failed.any():
        return f"The base itself {base.words}: its loss does not fall, so nothing can be said of the other conditions."
    head = f"The base trains to a loss of {number(base.final.mean())}."
    lower = [o.condition for o in outcomes if (o.final < base.final).all()]
    hint = f" Lower than the base on every seed: {', '.join(lower)}." if lower else ""
    if not failing:
        return f"{head} So does every perturbation: {', '.join(o.condition for o in outcomes if o is not base)}.{hint}"
    fails = ", ".join(f"{o.condition} {o.words}" for o in failing)
    trains = ", ".join(o.condition for o in outcomes if not o.failed.any() and o is not base)
    return f"{head} {fails}{f'; {trains} trains' if trains else ''}.{hint}"


def _finding(outcome: _Outcome, base: Float[np.ndarray, " seeds"]) -> Finding:
    failed = int(outcome.failed.sum())
    worst = outcome.final[outcome.failed]
    evidence = Evidence("final_loss", float(worst.mean()), baseline=float(base.mean()))
    summary = f"Under {outcome.condition} training {outcome.words}."
    share = (failed + 1) / (len(outcome.failed) + 2)  # mean of the share's posterior under a uniform prior
    severity: Severity = "error" if outcome.condition == "base" else "warning"
    return Finding("does_not_survive_perturbation", severity, share, summary, evidence=(evidence,))


def _figure(runs: Runs) -> Figure:
    steps = np.arange(1, next(iter(runs.values())).shape[1] + 1)
    lines = {condition: (steps, losses.mean(0)) for condition, losses in runs.items()}
    return line_chart("Training loss", lines, "step", "loss, mean over seeds (a gap where one diverged)")


def _setting(recipe: Recipe) -> Text:
    clip = "no clipping" if recipe.clip is None else f"gradients clipped at {recipe.clip:g}"
    return Text(
        f"Learning rate {recipe.lr:g}, {recipe.warmup} of {recipe.steps} steps warm-up, cosine to zero, {clip}. "
        "'init' multiplies every weight of two or more dimensions. What may help a model that fails: qk-norm "
        "(`poise.nn.add_qk_norm`), decoupled maps (`poise.nn.apply_sdd`), factors on residual branches "
        "(`poise.nn.stabilize_residuals`); run the grid again with it.",
        title="How it was trained",
    )
