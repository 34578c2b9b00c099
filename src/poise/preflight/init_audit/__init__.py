"""The audit before the first step: what will break, in which layer, and at which depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from poise.report import Report


def audit_init(
    model: nn.Module,
    batch: Any,
    loss_fn: Any,
    optimizer: Optimizer | None = None,
    *,
    blocks: Sequence[str] | None = None,
    products: int | None = None,
    seed: int = 0,
) -> Report:
    r"""Return what will break in a model as it is initialised, before its first step.

    One forward and one backward pass measure, by depth: how signals and gradients grow (beside the prediction of
    mean-field theory for the weights, for ReLU networks), how much the Jacobian of each block amplifies its input (by
    four random vectors that go back through each block), the residual stream's shortcuts, with factors on them, and
    branches, how much each layer normalisation amplifies gradients at every position of a sequence, an analytic bound
    on the Jacobian of feed-forward sub-layers, factors that a normalisation divides out again, attention logits and
    their entropy, dead units, whether different inputs can still be distinguished, and the gain of recurrent layers.
    Hessian products then give the sharpness and the largest usable learning rate, without and (up to two million
    parameters) with a warm-up. The report names the layer and the depth at which the model fails, and the code that
    cures it.

    Nothing of the model changes: parameters, gradients, mode, buffers, random states. Dropout is off; a batch norm that
    trains uses the statistics of the batch. Beyond thirty million parameters the sharpness is that of one example,
    bounded from below by four products, as the report notes.

    Args:
        model: any module, also compiled or wrapped for distributed training.
        batch: one batch as it will be trained on: a tensor, a tuple or a mapping.
        loss_fn: a criterion such as ``nn.CrossEntropyLoss()``, a :class:`poise.curvature.Supervised`, or any
            ``loss_fn(model, batch)`` that returns a mean; for transformers' models
            ``lambda model, batch: model(**batch).loss``.
        optimizer: what will train the model; its learning rate and epsilon are then checked too.
        blocks: names or patterns of the modules that count as depth. Found by default: siblings of one class that have
            parts, else the layers with weights.
        products: most Hessian products, 0 for no curvature. By default what the size of the model allows.
        seed: of the random vectors that measure Jacobians and start eigenvalue solvers.

    Raises:
        TypeError: if an argument has another type, or the loss is no tensor.
        ValueError: if the batch is empty or not finite, nothing is trainable, ``blocks`` match nothing, the model has
            no layer with weights, or the loss is not a scalar or depends on no parameter.

    References:
        Takase et al. (2025), arXiv:2312.16903; Hayou et al. (2021), arXiv:2010.12859; Gilmer et al. (2022),
        arXiv:2110.04369; Wortsman et al. (2024), arXiv:2309.14322; Ba et al. (2016), arXiv:1607.06450.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from poise.nn import StableResNetMLP
        >>> net = StableResNetMLP(8, 64, depth=50, out_features=2, kind="standard")
        >>> data = torch.randn(16, 8), torch.randint(2, (16,))
        >>> report = audit_init(net, data, nn.CrossEntropyLoss(), products=0)
        >>> report.verdict
        'will fail as it is'
    """
    # Imported here: listings read the rules of this folder, and need no measurements.
    from poise.preflight.init_audit.measure import measure
    from poise.preflight.init_audit.report import init_report

    return init_report(measure(model, batch, loss_fn, optimizer, blocks=blocks, products=products, seed=seed))
