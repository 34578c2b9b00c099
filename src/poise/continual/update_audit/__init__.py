"""The audit of an update: what it breaks, why, and the cheapest thing that prevents it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn

    from poise.report import Report


def audit_update(
    model: nn.Module,
    *,
    old: Any,
    new: Any,
    update: Callable[..., Any] | None = None,
    remedies: Literal["cheap", "all"] | Sequence[str] = "cheap",
    allowed_drop: float = 0.02,
    seeds: int = 3,
    metric: Callable[..., Any] | None = None,
    loss_fn: Callable[..., Any] | None = None,
    head: str | None = None,
    every: int = 1,
    subset: int | None = 1000,
    progress: bool | None = None,
    seed: int = 0,
) -> Report:
    """Return what an update breaks, when and why, and what prevents it.

    The update runs on copies of the model, as it is and under each remedy, over seeds; old and new data are evaluated
    after every update. The report shows how deep the score on old data falls and how long it takes to recover, which
    cause the experiments point to, and a table of remedies in which a smaller learning rate and more weight for old
    data always stand, both chosen on another seed. Remedies act from outside, by hooks of the optimizer's step: the
    update's loop is not changed. The model is not changed either.

    The number of runs and the time that they will take are said after the first one. Ctrl-C ends the audit with a
    report of what was measured so far.

    Args:
        model: a classifier as it is before the update, with a head wide enough for the new classes (see
            :func:`grow_head`).
        old: data that the model knows: a :class:`Task`, or ``((x, y), (x_test, y_test))``, each also a dataset of
            torch.
        new: data to learn, in the same form.
        update: ``update(model, old, new, on_step)`` trains the model in place, on two tasks, and calls ``on_step()``
            after each optimizer step; :func:`rehearse` by default.
        remedies: ``"cheap"``; ``"all"``, with the hidden layers limited to a low rank as well; or names. The two
            controls are always tried.
        allowed_drop: what the score on old data may lose, at any time, and that on new data at the end.
        seeds: runs of each.
        metric: called with outputs and targets, returns a score for each sample or one for all; higher is better.
            Accuracy by default.
        loss_fn: of outputs and targets, for the gradients of old data; cross entropy by default.
        head: name of the output layer; by default the last linear layer.
        every: updates between two evaluations.
        subset: held-out samples of each that are evaluated; ``None`` for all.
        progress: whether to show a progress bar; by default on a terminal.
        seed: the first seed.

    Raises:
        TypeError: if ``model`` is no module, ``update`` no function, or the head no linear layer.
        ValueError: if there are no held-out data, no head is found, a target is beyond the head, a remedy is unknown,
            the update leaves the model as it was (or trains another one) or never calls ``on_step``, or a setting is
            out of range.

    References:
        De Lange et al. (2023), arXiv:2205.13452; Harun and Kanan (2024), arXiv:2306.01904; Hess et al. (2024),
        arXiv:2311.04898; Soutif-Cormerais et al. (2023), arXiv:2306.16817.

    Example:
        >>> report = audit_update(model, old=old_set, new=new_set, update=my_finetune, allowed_drop=0.02)
        >>> report.verdict
        'breaks old data'
    """
    # Imported here: listings read the rules of this folder, and need no measurements.
    import torch.nn.functional as F

    from poise.continual.evaluation.evaluator import accuracy
    from poise.continual.update_audit.measure import measure
    from poise.continual.update_audit.report import update_report

    scores, loss = metric or accuracy, loss_fn or F.cross_entropy
    facts = measure(
        model, old, new, update, remedies, allowed_drop, seeds, scores, loss, head, every, subset, progress, seed
    )
    return update_report(facts)
