"""The audit of a training run: one call that measures the distance to the edge of stability."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from poise.report import Report


def audit(
    model: nn.Module,
    loss_fn: Any,
    data: Any,
    optimizer: Optimizer,
    batch_size: int,
    *,
    progress: bool | None = None,
    seed: int = 0,
    examples: int | None = None,
    seconds: float = 40.0,
) -> Report:
    """Return how far a model and its optimizer are from the edge of stability, and how certain that is.

    The report holds the sharpness with its error bound (for an adaptive optimizer also preconditioned), the optimizer's
    threshold, the largest stable learning rates for full batches and for this batch size, the smallest stable batch,
    the density of eigenvalues, and what the analysis does not cover. Nothing of the model and the optimizer changes.

    A large problem is cut to what takes about ``seconds``: fewer examples, fewer products, bounds in the place of exact
    limits. The report notes it. That depends on the speed of the machine; give ``examples`` where the same numbers have
    to come out again.

    Args:
        model: float32 or float64, with nothing random in its forward pass (``model.eval()`` where there is dropout).
        loss_fn: a criterion such as ``nn.CrossEntropyLoss()``, a :class:`poise.curvature.Supervised`, or any
            ``loss_fn(model, batch)`` that returns a mean (then without the noise of mini-batches).
        data: a batch of any kind or an iterable of batches, kept in memory.
        optimizer: what trains the model, see :func:`edge`; an adaptive one after its first step. Parameters that it
            does not hold count as fixed.
        batch_size: examples a step, from 1 to the number of examples.
        progress: whether to show a progress bar; by default on a terminal.
        seed: of samples and start vectors.
        examples: how many examples to use; by default as many as there is time for.
        seconds: about how long it may take on large problems.

    Raises:
        TypeError: if the optimizer's edge is not known, or an argument has another type.
        ValueError: if data is empty, ``batch_size`` or a setting is out of range, the loss is random or not finite, the
            optimizer holds no trainable parameter of the model, or an adaptive one has taken no step.

    References:
        Cohen et al. (2021), arXiv:2103.00065; Cohen et al. (2022), arXiv:2207.14484; Mulayoff and Michaeli (2024),
        arXiv:2306.07850; Wu and Su (2023), arXiv:2305.17490.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Linear(2, 1, bias=False)
        >>> data = torch.eye(2), torch.zeros(2, 1)  # the loss has the curvature 1 in both directions
        >>> report = audit(model, nn.MSELoss(), data, torch.optim.SGD(model.parameters(), lr=0.5), batch_size=2)
        >>> report.verdict
        'below the edge'
    """
    # The rules of this folder are read by listings, which need none of what measures.
    from poise.dynamics.training_audit.measure import measure
    from poise.dynamics.training_audit.report import training_report

    facts = measure(
        model, loss_fn, data, optimizer, batch_size,
        progress=progress, seed=seed, examples=examples, seconds=seconds,
    )  # fmt: skip
    return training_report(facts)
