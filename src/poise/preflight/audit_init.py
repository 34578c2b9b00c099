"""One call before the first step that says what will break, in which layer, and at which depth."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from poise.curvature import as_objective
from poise.curvature.loss.batches import tensors_of, to_device
from poise.curvature.loss.objective import Objective
from poise.doctor.tap.discovery import unwrap
from poise.doctor.tap.shadow import undisturbed
from poise.nn.dropout_off import dropout_off
from poise.nn.surgery import kinds
from poise.preflight.audit_init_facts import InitFacts
from poise.preflight.audit_init_report import init_report
from poise.preflight.curvature_limit.usable_lr import UsableLR, has_known_edge, usable_lr
from poise.preflight.signal_propagation.depth_growth import depth_growth, failing_depths
from poise.preflight.signal_propagation.hidden_state_gain import hidden_state_gain
from poise.preflight.signal_propagation.signal_propagation import depth_units, signal_propagation
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

    One forward and one backward pass measure, by depth: how signals and gradients grow (beside what mean-field theory
    expects of the weights, for ReLU networks), how much the Jacobian of each block stretches what passes it (by four
    random vectors that go back through each block), the residual stream's shortcuts and branches, how much each layer
    normalisation amplifies gradients, attention logits and their entropy, dead units, whether different inputs can
    still be told apart, and the gain of recurrent layers. Hessian products then give the sharpness and the largest
    usable learning rate, without and (up to two million parameters) with a warm-up. The report names the layer and the
    depth at which the model fails, and the code that cures it.

    Nothing of the model changes: parameters, gradients, mode, buffers, random states. Dropout is off; a batch norm that
    trains uses the statistics of the batch. Beyond thirty million parameters the sharpness is that of one example,
    bounded from below by four products, and the report says so.

    Args:
        model: any module, also compiled or wrapped for distributed training.
        batch: one batch as it will be trained on: a tensor, a tuple or a mapping.
        loss_fn: a criterion such as ``nn.CrossEntropyLoss()``, a :class:`poise.curvature.Supervised`, or any
            ``loss_fn(model, batch)`` that returns a mean; for transformers' models
            ``lambda model, batch: model(**batch).loss``.
        optimizer: what will train the model; its learning rate and epsilon are then judged too.
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
        >>> from poise.nn import StableResNetMLP
        >>> net = StableResNetMLP(8, 64, depth=50, out_features=2, kind="standard")
        >>> data = torch.randn(16, 8), torch.randint(2, (16,))
        >>> report = audit_init(net, data, nn.CrossEntropyLoss(), products=0)
        >>> report.verdict
        'will fail as it is'
    """
    plain, objective = _checked_model(model, optimizer, products), as_objective(loss_fn)
    device = next(plain.parameters()).device
    _check_batch(batch, objective)
    batch = to_device(batch, device)
    units, are_blocks = depth_units(plain, None if blocks is None else tuple(blocks))
    if not units:
        raise ValueError(f"model must have a layer with weights, got {kinds(plain)}; name its blocks with blocks=")
    passed = signal_propagation(plain, objective, batch, units, are_blocks, seed)
    if not passed.units:
        raise ValueError(f"none of {list(units.values())[:5]} put out a tensor on this batch; name others with blocks=")
    growth = depth_growth(plain, passed)
    with undisturbed([plain]), dropout_off(plain):
        gains = hidden_state_gain(plain, lambda: objective.loss(plain, batch)) if passed.finite else []
        lr, no_lr = _curvature(plain, objective, batch, optimizer, products, seed, passed.finite)
    trainable = [p for p in plain.parameters() if p.requires_grad]
    facts = InitFacts(
        model=type(plain).__name__,
        parameters=sum(p.numel() for p in trainable),
        dtype=", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in trainable})),
        batch=objective.n_examples(batch),
        passed=passed,
        growth=growth,
        failing=failing_depths(passed.units, growth),
        gains=gains,
        lr=lr,
        no_lr=no_lr,
        optimizer=optimizer,
        tied=_is_tied(plain),
        seed=seed,
    )
    return init_report(facts)


def _checked_model(model: Any, optimizer: Any, products: Any) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer or None, got {type(optimizer).__name__}")
    if products is not None and (not isinstance(products, int) or products < 0):
        raise ValueError(f"products must be a whole number of at least 0, got {products!r}")
    plain = unwrap(model)
    trainable = {id(p) for p in plain.parameters() if p.requires_grad}
    if not trainable:
        raise ValueError("model must have a parameter that requires a gradient, got none")
    if optimizer is not None and not trainable & {id(p) for g in optimizer.param_groups for p in g["params"]}:
        raise ValueError("optimizer must hold parameters of the model, got one that holds none of them")
    return plain


def _check_batch(batch: Any, objective: Objective) -> None:
    tensors = list(tensors_of(batch))
    if not tensors:
        raise TypeError(
            f"batch must hold a tensor, got {type(batch).__name__}; a loader gives one by next(iter(loader))"
        )
    if objective.n_examples(batch) == 0:
        raise ValueError("batch must hold at least one example, got none")
    for i, tensor in enumerate(tensors):
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"batch must be finite, but tensor {i} of it has NaN or infinite entries")


def _curvature(
    model: nn.Module,
    objective: Objective,
    batch: Any,
    optimizer: Optimizer | None,
    products: int | None,
    seed: int,
    finite: bool,
) -> tuple[UsableLR | None, str | None]:
    if products == 0:
        return None, "It was not asked for."
    if not finite:
        return None, "Signals or gradients are not finite on this batch."
    if any(p.dtype not in (torch.float32, torch.float64) for p in model.parameters() if p.requires_grad):
        return None, "Hessian products need float32 or float64; audit the model before it is cast."
    if optimizer is not None and not has_known_edge(optimizer):
        return None, f"The edge of {type(optimizer).__name__} is not known."
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="the fused attention kernel")
            found = usable_lr(model, objective, batch, optimizer, products, seed)
    except (ValueError, RuntimeError) as error:  # a loss of chance, a product that overflows, no second derivative
        return None, f"{error}."
    return (found, None) if math.isfinite(found.sharpness) else (None, "The curvature is not finite.")


def _is_tied(model: nn.Module) -> bool:
    owners: dict[int, int] = {}
    for module in model.modules():
        weight = module._parameters.get("weight")
        if weight is not None:
            owners[id(weight)] = owners.get(id(weight), 0) + 1
    tables = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    return any(owners[id(table)] > 1 for table in tables)
