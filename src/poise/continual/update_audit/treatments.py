"""What the audit changes about an update, from outside: the user's own loop stays as it is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from poise.continual.heads.class_mean_init import class_mean_init_
from poise.continual.heads.find_head import find_head, head_inputs
from poise.continual.heads.lora import inject_lora, merge_lora_
from poise.continual.streams.task import Task
from poise.continual.update_audit.facts import UNTREATED
from poise.continual.update_audit.rehearsal import rehearse
from poise.optim import EMA, project_gem

LossFn = Callable[[Tensor, Tensor], Tensor]
Update = Callable[..., Any]

_INIT_SAMPLES = 1000
_BATCH = 64


class Scene:
    """The model of one run, with its data, as a treatment meets it.

    Args:
        model: the copy that is updated.
        old: old data.
        new: new data.
        new_classes: classes only in the new data.
        head: name of the output layer.
        loss_fn: of outputs and targets.
        seed: of what a treatment draws.
    """

    def __init__(
        self,
        model: nn.Module,
        old: Task,
        new: Task,
        new_classes: tuple[int, ...],
        head: str,
        loss_fn: LossFn,
        seed: int,
    ) -> None:
        self.model, self.old, self.new, self.new_classes = model, old, new, new_classes
        self.head, self.loss_fn = head, loss_fn
        self.generator = torch.Generator().manual_seed(seed)

    @property
    def layer(self) -> nn.Linear:
        """The output layer."""
        return find_head(self.model, self.head)[1]

    def params(self, optimizer: Optimizer) -> list[nn.Parameter]:
        """Return the parameters with a gradient of an optimizer, if it trains the model of this run; else none."""
        own = {id(p) for p in self.model.parameters()}
        params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        return params if any(id(p) in own for p in params) else []

    def old_gradient(self, params: list[nn.Parameter]) -> list[Tensor]:
        """Return the gradient of the loss on a batch of old data."""
        pick = torch.randint(len(self.old), (min(_BATCH, len(self.old)),), generator=self.generator)
        with torch.enable_grad():
            loss = self.loss_fn(self.model(self.old.x[pick]), self.old.y[pick])
            grads = torch.autograd.grad(loss, params, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(params, grads, strict=True)]


class Treatment:
    """The update as it is; what a remedy changes, a subclass overrides.

    Attributes:
        label: for tables.
        remedy: name of the documented remedy; empty for the update as it is, and for experiments.
        needs_new_classes: whether it concerns the rows of new classes.
        strength: in words, where there is one.
    """

    label: str = UNTREATED
    remedy: str = ""
    needs_new_classes: bool = False
    strength: str = ""

    def update(self, update: Update) -> Update:
        """Return the update to call."""
        return update

    def begin(self, scene: Scene) -> None:
        """Change the model before the update."""

    def before_step(self, scene: Scene, optimizer: Optimizer, params: list[nn.Parameter]) -> None:
        """Act before a step of the update's optimizer."""

    def after_step(self, scene: Scene, optimizer: Optimizer) -> None:
        """Act after it."""

    def served(self, scene: Scene) -> nn.Module:
        """Return the model that is evaluated."""
        return scene.model

    def end(self, scene: Scene) -> None:
        """Act when the update is done."""

    @contextmanager
    def acting(self, scene: Scene) -> Iterator[None]:
        """Act on every optimizer that trains the model of this run."""

        def before(optimizer: Optimizer, *_: Any) -> None:
            params = scene.params(optimizer)
            if params:
                with torch.no_grad():
                    self.before_step(scene, optimizer, params)

        def after(optimizer: Optimizer, *_: Any) -> None:
            if scene.params(optimizer):
                with torch.no_grad():
                    self.after_step(scene, optimizer)

        hooks = [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]
        try:
            self.begin(scene)
            yield
        finally:
            for hook in hooks:
                hook.remove()


class LowerLR(Treatment):
    """A smaller learning rate.

    Args:
        factor: of the rates that the update sets.
    """

    label, remedy = "smaller learning rate", "lower_update_lr"

    def __init__(self, factor: float) -> None:
        self.factor, self.strength = factor, f"times {factor:.3g}"
        self._rates: list[Any] = []

    def before_step(self, scene: Scene, optimizer: Optimizer, params: list[nn.Parameter]) -> None:
        """Lower the rates."""
        self._rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * self.factor

    def after_step(self, scene: Scene, optimizer: Optimizer) -> None:
        """Set them back, for schedulers."""
        for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate


class ReweightOld(Treatment):
    """More weight for old data.

    Args:
        weight: of the loss on old data; the rest is what the update does.
    """

    label, remedy = "more weight for old data", "reweight_old_data"

    def __init__(self, weight: float) -> None:
        self.weight, self.strength = weight, f"weight {weight:.3g}"
        self._is_native = False

    def update(self, update: Update) -> Update:
        """Use the weight that plain rehearsal has anyway."""
        plain = update.func if isinstance(update, functools.partial) else update
        self._is_native = plain is rehearse
        return functools.partial(update, old_weight=self.weight) if self._is_native else update

    def before_step(self, scene: Scene, optimizer: Optimizer, params: list[nn.Parameter]) -> None:
        """Mix the gradient of old data into that of the update."""
        if not self._is_native:
            for p, g in zip(params, scene.old_gradient(params), strict=True):
                assert p.grad is not None
                p.grad.lerp_(g, self.weight)


class InitialiseHead(Treatment):
    """Rows of new classes from their samples."""

    label, remedy, needs_new_classes = "rows of new classes from their samples", "class_mean_rows", True

    def begin(self, scene: Scene) -> None:
        """Set the rows."""
        layer = scene.layer
        features = head_inputs(scene.model, layer, scene.new.x[:_INIT_SAMPLES])
        old = head_inputs(scene.model, layer, scene.old.x[:_INIT_SAMPLES])
        class_mean_init_(layer, features, scene.new.y[:_INIT_SAMPLES], scene.new_classes, old_features=old)


class FreezeOldRows(Treatment):
    """Rows of old classes stay where they are."""

    label, remedy, needs_new_classes = "rows of old classes frozen", "freeze_old_rows", True

    def begin(self, scene: Scene) -> None:
        """Remember the rows."""
        layer = scene.layer
        rows = [c for c in range(layer.out_features) if c not in scene.new_classes]
        self._rows = torch.tensor(rows, device=layer.weight.device)
        self._kept = [(p, p.detach()[self._rows].clone()) for p in (layer.weight, layer.bias) if p is not None]

    def after_step(self, scene: Scene, optimizer: Optimizer) -> None:
        """Put them back."""
        for p, kept in self._kept:
            p[self._rows] = kept


class ServeAverage(Treatment):
    """Averaged weights are served.

    Args:
        decay: of the average.
    """

    label, remedy = "averaged weights served", "serve_average"

    def __init__(self, decay: float) -> None:
        self.decay, self.strength = decay, f"decay {decay:.4g}"

    def begin(self, scene: Scene) -> None:
        """Start the average."""
        self._ema = EMA(scene.model, self.decay)

    def after_step(self, scene: Scene, optimizer: Optimizer) -> None:
        """Move it."""
        self._ema.update()

    def served(self, scene: Scene) -> nn.Module:
        """Return the average."""
        return self._ema.module


class LowRank(Treatment):
    """Hidden linear layers move by a change of low rank only.

    Args:
        rank: of the change.
    """

    label, remedy = "hidden layers of low rank", "low_rank_update"

    def __init__(self, rank: int) -> None:
        self.rank, self.strength = rank, f"rank {rank}"

    def begin(self, scene: Scene) -> None:
        """Put the changes in."""
        inject_lora(scene.model, self.rank, head=scene.head)

    def end(self, scene: Scene) -> None:
        """Add them to the weights."""
        merge_lora_(scene.model)


class ProjectGradients(Treatment):
    """Gradients are projected against the old data (GEM, at every update)."""

    label, remedy = "gradients projected (GEM)", "project_gradients"

    def before_step(self, scene: Scene, optimizer: Optimizer, params: list[nn.Parameter]) -> None:
        """Project."""
        reference = torch.cat([g.reshape(-1) for g in scene.old_gradient(params)])
        flat = torch.cat([p.grad.reshape(-1) for p in params if p.grad is not None])
        parts = project_gem(flat, reference[None], always=True).split([p.numel() for p in params])
        for p, part in zip(params, parts, strict=True):
            p.grad = part.view_as(p)


class FreezeHidden(Treatment):
    """The experiment on hidden plasticity: only the output layer is trained."""

    label = "hidden layers frozen"

    def begin(self, scene: Scene) -> None:
        """Freeze all but the head."""
        scene.model.requires_grad_(False)
        scene.layer.requires_grad_(True)

    def end(self, scene: Scene) -> None:
        """Make everything trainable again."""
        scene.model.requires_grad_(True)


class MeasureGradients(Treatment):
    """The update as it is, while its gradients are compared with those of old data.

    Attributes:
        cosines: one an update.
        ratios: norm of the old data's gradient over that of the update.
    """

    label = "gradients measured"

    def __init__(self) -> None:
        self.cosines: list[float] = []
        self.ratios: list[float] = []

    def before_step(self, scene: Scene, optimizer: Optimizer, params: list[nn.Parameter]) -> None:
        """Compare."""
        old = torch.cat([g.reshape(-1).double() for g in scene.old_gradient(params)])
        own = torch.cat([p.grad.reshape(-1).double() for p in params if p.grad is not None])
        sizes = float(old.norm()), float(own.norm())
        self.cosines.append(float(old @ own) / (sizes[0] * sizes[1]) if all(sizes) else 0.0)
        self.ratios.append(sizes[0] / sizes[1] if sizes[1] else float("inf"))
