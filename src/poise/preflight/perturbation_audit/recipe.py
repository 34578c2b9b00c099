"""How a model is trained once, with the given settings or with some of them changed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from poise.curvature import Objective, as_objective
from poise.optim import WarmupCosineLR

_LAST = 0.25  # the final loss is the mean over this part of the steps
_FACTOR = re.compile(r"(lr|init)\*(.+)")

LossFn = Callable[..., Tensor]


@dataclass(frozen=True, slots=True)
class Perturbation:
    """The difference from the base.

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
    return float(late(losses).mean())


def late(losses: Float[np.ndarray, " steps"]) -> Float[np.ndarray, " late"]:
    """Return the last quarter of a run."""
    return losses[-max(1, round(_LAST * len(losses))) :]


def _positive(text: str, condition: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"conditions must have positive factors, got {text!r} in {condition!r}")
    return value


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
