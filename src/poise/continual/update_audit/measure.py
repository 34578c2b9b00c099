"""How the audit of an update measures: the update again and again from the same model, as it is and treated."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from poise.continual.evaluation.evaluator import ContinualEvaluator, Metric, evaluating
from poise.continual.heads.find_head import find_head
from poise.continual.streams.task import Task, as_task
from poise.continual.update_audit.facts import Conflict, UpdateFacts, UpdateRun
from poise.continual.update_audit.rehearsal import rehearse
from poise.continual.update_audit.treatments import (
    FreezeHidden,
    FreezeOldRows,
    InitialiseHead,
    LossFn,
    LowerLR,
    LowRank,
    MeasureGradients,
    ProjectGradients,
    ReweightOld,
    Scene,
    ServeAverage,
    Treatment,
    Update,
)
from poise.tools.listing import listing
from poise.tools.number import number
from poise.tools.progress_bar import progress_bar
from poise.tools.random_states import seeded_random_states
from poise.tools.unwrap import unwrap

CHEAP = (
    "lower_update_lr",
    "reweight_old_data",
    "class_mean_rows",
    "freeze_old_rows",
    "serve_average",
    "project_gradients",
)
ALL = (*CHEAP, "low_rank_update")
ALWAYS = ("lower_update_lr", "reweight_old_data")
"""The cheap controls, which every table has."""

_FACTORS = (1 / 3, 0.1, 0.03)
_WEIGHTS = (0.7, 0.9)
_TUNING = 10_007
"""Distance of the seed on which strengths are chosen from the first one."""
_RANK = 16
_FAILURES = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


@dataclass
class _Setting:
    """What all runs have in common."""

    model: nn.Module
    old: Task
    new: Task
    update: Update
    head: str
    new_classes: tuple[int, ...]
    metric: Metric
    loss_fn: LossFn
    every: int
    subset: int | None
    seed: int


@dataclass
class _Log:
    """What was measured so far."""

    runs: dict[str, list[UpdateRun]] = field(default_factory=dict)
    lags: list[float] = field(default_factory=list)
    not_checked: dict[str, str] = field(default_factory=dict)


def measure(
    model: nn.Module,
    old: Any,
    new: Any,
    update: Update | None,
    remedies: str | Sequence[str],
    allowed_drop: float,
    seeds: int,
    metric: Metric,
    loss_fn: LossFn,
    head: str | None,
    every: int,
    subset: int | None,
    progress: bool | None,
    seed: int,
) -> UpdateFacts:
    """Return what the audit of an update measures; arguments and errors are those of :func:`audit_update`."""
    chosen = _chosen(remedies)
    if seeds < 1 or every < 1 or not allowed_drop >= 0:
        raise ValueError(
            f"seeds and every must be at least 1 and allowed_drop not negative, got {seeds}, {every}, {allowed_drop}"
        )
    setting = _setting(model, old, new, update, metric, loss_fn, head, every, subset, seed)
    before, before_widened = _before(setting)
    log, used = _Log(), tuple(range(seed, seed + seeds))
    start = time.perf_counter()
    probe = MeasureGradients()
    first = _run(setting, probe, seed + _TUNING)
    treatments = _treatments(setting, chosen, len(probe.cosines) or 1, log)
    tunings = (len(_FACTORS) + len(_WEIGHTS)) if treatments else 0
    total = tunings + seeds * (len(treatments) + 1)
    each = time.perf_counter() - start
    parts = f"{seeds} seeds, {len(treatments)} treatments, {tunings} runs to choose strengths"
    cost = f"{total + 1} runs of the update ({parts})"
    _announce(f"audit_update: {cost}, about {number(each * total, 2)} s", progress)
    tuned: dict[str, str] = {}
    with progress_bar(progress) as bar:
        task = bar.add_task("audit of the update", total=total)
        try:
            treatments = _with_chosen_strengths(setting, treatments, first, allowed_drop, lambda: bar.advance(task))
            tuned = {t.label: t.strength for t in treatments if t.strength}
            for number_of_seed in used:
                for treatment in [Treatment(), *treatments]:
                    bar.update(task, description=f"seed {number_of_seed}: {treatment.label}")
                    _measured(setting, treatment, number_of_seed, log)
                    bar.advance(task)
        except KeyboardInterrupt:
            if not log.runs.get(Treatment.label):
                raise
            log.not_checked["the rest"] = "The audit was interrupted; what is here is what was measured before."
    cost += f" took {number(time.perf_counter() - start, 3)} s"
    return UpdateFacts(
        model=type(unwrap(model)).__name__,
        metric=getattr(metric, "__name__", type(metric).__name__),
        before=before,
        before_widened=before_widened,
        new_classes=setting.new_classes,
        samples=(_count(setting.old, subset), _count(setting.new, subset)),
        every=every,
        runs={label: tuple(runs) for label, runs in log.runs.items()},
        experiments={
            "head_initialisation": InitialiseHead.label,
            "hidden_plasticity": FreezeHidden.label,
            "gradient_conflict": ProjectGradients.label,
        },
        remedies={t.label: t.remedy for t in treatments if t.remedy},
        tuned=tuned,
        conflict=_conflict(probe, first),
        lag=float(np.mean(log.lags)) if log.lags else None,
        decay=next((t.decay for t in treatments if isinstance(t, ServeAverage)), float("nan")),
        allowed_drop=allowed_drop,
        not_checked=log.not_checked,
        cost=cost,
        seeds=used,
    )


def _chosen(remedies: str | Sequence[str]) -> tuple[str, ...]:
    names = {"cheap": CHEAP, "all": ALL}.get(remedies, ()) if isinstance(remedies, str) else tuple(remedies)
    unknown = [name for name in names if name not in ALL]
    if unknown or not names:
        raise ValueError(f"remedies must be 'cheap', 'all' or names among {list(ALL)}, got {remedies!r}")
    return tuple(name for name in ALL if name in {*names, *ALWAYS})


def _setting(
    model: nn.Module,
    old: Any,
    new: Any,
    update: Update | None,
    metric: Metric,
    loss_fn: LossFn,
    head: str | None,
    every: int,
    subset: int | None,
    seed: int,
) -> _Setting:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if update is not None and not callable(update):
        raise TypeError(f"update must be a function (model, old, new, on_step), got {type(update).__name__}")
    known, fresh = as_task(old, "old"), as_task(new, "new")
    name, layer = find_head(model, head)
    labels = torch.cat([known.y, fresh.y, known.y_test, fresh.y_test])
    if labels.is_floating_point() or int(labels.min()) < 0 or int(labels.max()) >= layer.out_features:
        raise ValueError(
            f"targets must be classes from 0 to {layer.out_features - 1}, as many as the head {name!r} has rows, got "
            f"{labels.min().item():g} to {labels.max().item():g}; widen it first with grow_head()"
        )
    new_classes = tuple(sorted(set(fresh.classes) - set(known.classes)))
    return _Setting(model, known, fresh, update or rehearse, name, new_classes, metric, loss_fn, every, subset, seed)


@torch.no_grad()
def _before(setting: _Setting) -> tuple[float, float]:
    """Return the score on old data before the update, without and with the outputs of new classes."""
    x, y = _sample(setting.old, setting.subset, setting.seed)
    with evaluating(setting.model):
        outputs = torch.cat([setting.model(part) for part in x.split(1024)])
    widened = _mean(setting.metric(outputs, y))
    if not setting.new_classes:
        return widened, widened
    narrow = outputs.clone()
    narrow[:, list(setting.new_classes)] = -torch.inf
    return _mean(setting.metric(narrow, y)), widened


def _mean(score: Any) -> float:
    return float(score.double().mean()) if isinstance(score, Tensor) else float(score)


def _count(task: Task, subset: int | None) -> int:
    return len(task.x_test) if subset is None else min(subset, len(task.x_test))


def _sample(task: Task, subset: int | None, seed: int) -> tuple[Tensor, Tensor]:
    """Return the held-out samples that every run is evaluated on."""
    if subset is None or subset >= len(task.x_test):
        return task.x_test, task.y_test
    pick = torch.randperm(len(task.x_test), generator=torch.Generator().manual_seed(seed))[:subset]
    return task.x_test[pick], task.y_test[pick]


def _treatments(setting: _Setting, chosen: tuple[str, ...], updates: int, log: _Log) -> list[Treatment]:
    """Return what is tried; reasons for what is not go into the log."""
    horizon = max(updates / 4, 10.0)
    made: dict[str, Callable[[], Treatment]] = {
        "lower_update_lr": lambda: LowerLR(_FACTORS[0]),
        "reweight_old_data": lambda: ReweightOld(_WEIGHTS[0]),
        "class_mean_rows": InitialiseHead,
        "freeze_old_rows": FreezeOldRows,
        "serve_average": lambda: ServeAverage(1 - 1 / horizon),
        "project_gradients": ProjectGradients,
        "low_rank_update": lambda: LowRank(_largest_rank(setting)),
    }
    treatments: list[Treatment] = [FreezeHidden()]
    for name, make in made.items():
        treatment = make()
        if name not in chosen:
            log.not_checked[treatment.label] = "Not among the remedies that were asked for."
        elif treatment.needs_new_classes and not setting.new_classes:
            log.not_checked[treatment.label] = "The new data have no classes that the old data do not have."
        else:
            treatments.append(treatment)
    return treatments


def _largest_rank(setting: _Setting) -> int:
    _, output = find_head(setting.model, setting.head)
    hidden = [m for m in setting.model.modules() if isinstance(m, nn.Linear) and m is not output]
    return min([_RANK, *(min(m.weight.shape) for m in hidden)])


def _with_chosen_strengths(
    setting: _Setting,
    treatments: list[Treatment],
    untreated: UpdateRun,
    allowed_drop: float,
    advance: Callable[[], None],
) -> list[Treatment]:
    """Choose the learning rate and the weight of old data, on a seed that is not used again."""
    tried: dict[type[Treatment], list[Treatment]] = {
        LowerLR: [LowerLR(f) for f in _FACTORS],
        ReweightOld: [ReweightOld(w) for w in _WEIGHTS],
    }
    best: dict[type[Treatment], Treatment] = {}
    for kind, candidates in tried.items():
        scores = {}
        for i, candidate in enumerate(candidates):
            run = _run(setting, candidate, setting.seed + _TUNING)
            learns = run.new[-1] >= untreated.new[-1] - allowed_drop
            scores[i] = (learns, run.minimum if learns else run.new[-1])
            advance()
        best[kind] = candidates[max(scores, key=lambda i: scores[i])]
    return [best.get(type(t), t) for t in treatments]


def _measured(setting: _Setting, treatment: Treatment, seed: int, log: _Log) -> None:
    """Run and keep; a treatment that the update cannot bear is noted with the reason."""
    if treatment.label in log.not_checked:
        return
    if type(treatment) is Treatment:  # the update as it is: its errors are the caller's
        log.runs.setdefault(treatment.label, []).append(_run(setting, treatment, seed))
        return
    try:
        run = _run(setting, treatment, seed)
    except _FAILURES as error:
        log.not_checked[treatment.label] = f"The update failed with it: {type(error).__name__}: {error}."
        log.runs.pop(treatment.label, None)
        return
    log.runs.setdefault(treatment.label, []).append(run)
    if isinstance(treatment, ServeAverage):
        plain = log.runs[Treatment.label][-1]
        half = len(run.new) // 2
        log.lags.append(float(np.mean(run.new[half:]) - np.mean(plain.new[half:])))


def _run(setting: _Setting, treatment: Treatment, seed: int) -> UpdateRun:
    """Update a copy of the model, and evaluate what is served after every update."""
    model = copy.deepcopy(setting.model)
    scene = Scene(model, setting.old, setting.new, setting.new_classes, setting.head, setting.loss_fn, seed)
    sets = {t: _sample(task, setting.subset, setting.seed) for t, task in (("old", setting.old), ("new", setting.new))}
    evaluator = ContinualEvaluator(sets, every=setting.every, subset=None, metric=setting.metric, seen_only=False)
    update = treatment.update(setting.update)
    with seeded_random_states(next(model.parameters()).device, seed), treatment.acting(scene):
        before = [p.detach().clone() for p in model.parameters()]
        evaluator.begin_task("new", treatment.served(scene))
        start = time.perf_counter()
        spent = evaluator.seconds
        returned = update(model, setting.old, setting.new, lambda: evaluator.after_step(treatment.served(scene)))
        seconds = time.perf_counter() - start - (evaluator.seconds - spent)
        _check_updated(model, before, returned, evaluator.step)
        evaluator.end_task(treatment.served(scene))
        treatment.end(scene)
    history = evaluator.history
    return UpdateRun(history.steps, history.accuracy[:, 0], history.accuracy[:, 1], seconds)


def _check_updated(model: nn.Module, before: list[Tensor], returned: Any, steps: int) -> None:
    moved = any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    if not moved:
        other = " and returned another one" if isinstance(returned, nn.Module) and returned is not model else ""
        raise ValueError(f"update must train the model that it is given, in place; it left it as it was{other}")
    if not steps:
        raise ValueError("update must call on_step() after each optimizer step, it never did")


def _conflict(probe: MeasureGradients, run: UpdateRun) -> Conflict | None:
    if not probe.cosines:
        return None
    until = max(int(run.steps[int(run.old.argmin())]), 1)
    opposed = np.array(probe.cosines[:until]) < 0
    return Conflict(probe.cosines[0], float(opposed.mean()), probe.ratios[0])


def _announce(words: str, progress: bool | None) -> None:
    console = Console(stderr=True)
    if console.is_terminal if progress is None else progress:
        console.print(words)


def not_tried() -> str:
    """Return what the audit cannot try from outside a training loop."""
    names = ["masked cross entropy", "soft targets", "a replay memory of another size", "a spectral regulariser"]
    return f"Changes of the loss are not tried, since the loop is yours: {listing(names, 4)}."
