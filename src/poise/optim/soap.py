"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from poise.optim import kronecker_basis, soap_step
from poise.optim.closure import evaluate
from poise.optim.kronecker_basis import NullSpace
from poise.optim.refresh_schedule import staggered_phases
from poise.optim.soap_step import Move, Part, RotatedAxis
from poise.optim.tensor_layout import DataFormat, TensorLayout, tensor_layout

Refresh = Literal["together", "staggered"]
Nonfinite = Literal["raise", "skip", "unchecked"]

# As in torch's own optimizers: torch.compiler.disable would import the compiler, which takes seconds, with this module.
_untraced = torch._disable_dynamo


class SOAP(Optimizer):
    r"""Adam in the eigenbasis of Shampoo's preconditioner.

    For a matrix with gradient :math:`G`, Gram matrices :math:`L = \mathrm{EMA}(G G^T)`, :math:`R = \mathrm{EMA}(G^T G)`
    and their eigenvectors :math:`Q_L, Q_R` (a tensor has one of each per axis)

    .. math::
        G' &= Q_L^T G Q_R, \quad m' = \mathrm{EMA}_{\beta_1}(G'), \quad v = \mathrm{EMA}_{\beta_2}(G'^2) \\
        W &\leftarrow W - \eta \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t}\, Q_L \frac{m'}{\sqrt v + \epsilon} Q_R^T,
        \qquad W \leftarrow (1 - \eta \lambda) W

    The bases are refreshed every ``precondition_frequency`` steps by one step of orthogonal iteration; the momentum is
    then rotated along. The first gradient of a parameter only founds its bases and moves nothing. Vectors, scalars and
    axes longer than ``max_precond_dim`` are not rotated, which leaves plain Adam.

    State is float32, for float64 parameters float64, and is loaded back as saved. Settings of a group may be edited
    while training, except those that shape its state (``max_precond_dim``, ``merge_dims``, ``precondition_1d``,
    ``one_sided``, ``factored``, ``data_format``).

    ``torch.compile(optimizer.step)`` traces projections, moments, moves and Gram matrices as one graph, once for all
    learning rates; the checks of the gradients, the counting of steps and the refreshes of the bases stay outside. The
    call that founds bases and the one after it compile, and so does every change of which parameters have gradients::

        step = torch.compile(optimizer.step)
        for inputs, targets in loader:
            optimizer.zero_grad()
            criterion(model(inputs), targets).backward()
            step()

    Args:
        params: parameters or param groups.
        lr: learning rate, not negative; a tensor is read on every step.
        betas: decay rates of the averages of the gradient and of its square, in [0, 1).
        shampoo_beta: decay rate of the Gram matrices, in [0, 1); ``None`` takes the second of ``betas``.
        eps: added to the root of the second moment (which is not corrected for bias before).
        weight_decay: decoupled decay, applied after the step and scaled by ``lr``.
        precondition_frequency: steps between two refreshes of a basis, at least 1.
        max_precond_dim: longest axis that is rotated.
        merge_dims: merge neighbouring axes as long as it is no longer than ``max_precond_dim``; turns convolution
            kernels into matrices.
        precondition_1d: rotate vectors too.
        one_sided: rotate only the shorter axis of a matrix (half the time and less memory).
        factored: keep only row and column sums of the second moment of a matrix, as Adafactor does.
        normalize_grads: scale each update to a root mean square of one.
        correct_bias: whether the factor of :math:`\eta` above is applied.
        skip_first: whether the first gradient moves nothing; otherwise it is also the first that moves the weights.
        null_space: ``"lift"`` decides which basis the null space of a singular Gram matrix has, and keeps it (see
            :mod:`poise.optim.kronecker_basis`): in float64, runs then agree between machines to rounding, as Adam's do.
            ``"reference"`` leaves it to rounding, as the paper's code does, and such runs part. In float32 runs part in
            both: where a Gram matrix is singular the rotated gradient is rounding, which Adam scales up to full steps.
            An ``eps`` above that rounding (1e-6 for gradients of size 1) bounds them.
        data_format: ``"channels_last"`` if the channels of four axes are the last; counts for ``merge_dims`` only.
        refresh: ``"together"`` refreshes all bases on the same step; ``"staggered"`` spreads them over the period, so
            that no step takes much longer than another.
        nonfinite: what happens when the gradient's norm is not finite (one NaN in a Gram matrix would stay for
            good): ``"raise"``, ``"skip"`` the whole step, or ``"unchecked"``, which saves a pass over the gradients
            and, on an accelerator, a synchronisation.
        maximize: climb instead of descend.

    Raises:
        ValueError: if a setting is out of range, or, in ``step`` and ``load_state_dict``, the state of a parameter
            does not fit its shape and group.
        RuntimeError: in ``step``, before anything changes, if a gradient is sparse or complex, or (with
            ``nonfinite="raise"``) not finite.

    References:
        Vyas et al., "SOAP: Improving and Stabilizing Shampoo using Adam", ICLR 2025, arXiv:2409.11321.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 3e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        shampoo_beta: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        precondition_frequency: int = 10,
        max_precond_dim: int = 10_000,
        merge_dims: bool = False,
        precondition_1d: bool = False,
        *,
        one_sided: bool = False,
        factored: bool = False,
        normalize_grads: bool = False,
        correct_bias: bool = True,
        skip_first: bool = True,
        null_space: NullSpace = "lift",
        data_format: DataFormat = "channels_first",
        refresh: Refresh = "together",
        nonfinite: Nonfinite = "raise",
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "shampoo_beta": shampoo_beta,
            "eps": eps,
            "weight_decay": weight_decay,
            "precondition_frequency": precondition_frequency,
            "max_precond_dim": max_precond_dim,
            "merge_dims": merge_dims,
            "precondition_1d": precondition_1d,
            "one_sided": one_sided,
            "factored": factored,
            "normalize_grads": normalize_grads,
            "correct_bias": correct_bias,
            "skip_first": skip_first,
            "null_space": null_space,
            "data_format": data_format,
            "refresh": refresh,
            "nonfinite": nonfinite,
            "maximize": maximize,
        }
        _require_valid(defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its settings are checked as the constructor's are.

        Raises:
            ValueError: if a setting is out of range.
        """
        _require_valid({**self.defaults, **param_group})
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: clears the gradients, computes the loss, calls ``backward`` and returns the loss.
        """
        loss = evaluate(closure)
        moves = self._prepare(torch.compiler.is_compiling())
        for move in moves:
            soap_step.move(move)
        self._refresh(moves)
        return loss

    def basis(self, p: Tensor) -> list[Float[Tensor, "n n"] | None]:
        """Return the eigenvectors (columns, largest eigenvalue first) along each axis of a parameter.

        Args:
            p: one of the optimizer's parameters.

        Returns:
            A matrix per axis, after merging; ``None`` for an axis that is not rotated. Empty before the first step.
        """
        state = self.state.get(p, {})
        return [state.get(f"basis_{axis}") for axis in range(_order(state))]

    @torch.no_grad()
    def spectrum(self, p: Tensor) -> list[Float[Tensor, " n"] | None]:
        """Return estimated eigenvalues of the Gram matrix along each axis.

        The largest over the smallest is the condition number of a layer.

        Args:
            p: one of the optimizer's parameters.

        Returns:
            Values per axis, in the order of :meth:`basis`; ``None`` for an axis that is not rotated.
        """
        state = self.state.get(p, {})
        quotients = kronecker_basis.rayleigh_quotients
        return [
            None if basis is None else quotients(state[f"gram_{axis}"], basis)
            for axis, basis in enumerate(self.basis(p))
        ]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state as it was saved: torch alone would round it to the parameters' precision.

        Args:
            state_dict: what :meth:`state_dict` returned.

        Raises:
            ValueError: if it does not fit the parameters.
        """
        saved: dict[str, Any] = {}

        def check(_: Optimizer, given: dict[str, Any]) -> None:
            saved.update(given)
            for group, mine in zip(given["param_groups"], self.param_groups, strict=False):
                for key, p in zip(group["params"], mine["params"], strict=False):
                    if key in given["state"]:
                        settings = {**self.defaults, **group}
                        _require_fitting(given["state"][key], _layout(p, settings), settings, partial(_name, p, mine))

        handle = self.register_load_state_dict_pre_hook(check)  # the last hook gets the argument after all others
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        ids = chain.from_iterable(group["params"] for group in saved["param_groups"])
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        for key, p in zip(ids, params, strict=True):
            if key in saved["state"]:
                self.state[p] = {name: _loaded(name, value, p) for name, value in saved["state"][key].items()}

    @_untraced  # what is due depends on step counters, for which a graph would be compiled again each time
    def _prepare(self, traced: bool) -> list[Move]:
        """Check the gradients, initialise bases, count steps, and return the moves to make."""
        work = [(group, _with_gradients(group)) for group in self.param_groups]
        if not all(_may_step(group, params) for group, params in work):
            return []
        return [move for group, params in work for move in self._moves(group, params, traced)]

    def _moves(self, group: dict[str, Any], params: list[Tensor], traced: bool) -> list[Move]:
        new = [self._initialised(p, group) for p in params if not self.state.get(p)]
        soap_step.initialise_bases(new, _gram_beta(group), group["null_space"])
        initialised = {id(part.param) for part in new}
        old = self._advanced([p for p in params if id(p) not in initialised], group)
        moves = [soap_step.prepared(batch, group, _gram_beta(group), traced) for batch in soap_step.batches(old)]
        if not group["skip_first"]:  # the Gram matrices hold this gradient already
            first = self._advanced([part.param for part in new], group)
            moves += [soap_step.prepared(batch, group, None, traced) for batch in soap_step.batches(first)]
        return moves

    @_untraced
    def _refresh(self, moves: list[Move]) -> None:
        """Refresh the bases that are due."""
        for group in self.param_groups:
            parts = [
                part for move in moves if move.group is group and move.gram_beta is not None for part in move.batch
            ]
            soap_step.refresh(self._due(parts, group), group)

    def _initialised(self, p: Tensor, group: dict[str, Any]) -> Part:
        layout = _layout(p, group)
        self.state[p] = _initial_state(p, layout, group["factored"])
        return Part(p, _gradient(p, layout, group["maximize"]), self.state[p], layout, 0)

    def _advanced(self, params: list[Tensor], group: dict[str, Any]) -> list[Part]:
        """Count a step for each parameter that has bases."""
        layouts, states = [_layout(p, group) for p in params], [self.state[p] for p in params]
        for p, state, layout in zip(params, states, layouts, strict=True):
            _require_fitting(state, layout, group, partial(_name, p, group))
        if params:
            torch._foreach_add_([state["step"] for state in states], 1)
        return [
            Part(p, _gradient(p, layout, group["maximize"]), state, layout, int(state["step"]))
            for p, state, layout in zip(params, states, layouts, strict=True)
        ]

    def _due(self, parts: list[Part], group: dict[str, Any]) -> list[RotatedAxis]:
        """Return the axes whose bases are to be refreshed now."""
        period = group["precondition_frequency"]
        axes = soap_step.rotated_axes(parts)
        if group["refresh"] == "together":
            return [axis for axis in axes if axis.part.step % period == 0]
        phases = _phases(group, period)
        return [a for a in axes if a.part.step % period == phases[id(a.part.param), a.axis]]


def _gram_beta(group: dict[str, Any]) -> float:
    return group["betas"][1] if group["shampoo_beta"] is None else group["shampoo_beta"]


def _phases(group: dict[str, Any], period: int) -> dict[tuple[int, int], int]:
    """Return the step of the period on which each axis of each parameter of a group is refreshed."""
    layouts = [(p, _layout(p, group)) for p in group["params"]]
    axes = {(id(p), axis): layout.shape[axis] for p, layout in layouts for axis in layout.axes}
    return dict(zip(axes, staggered_phases(tuple(n**3 for n in axes.values()), period), strict=True))


def _layout(p: Tensor, group: dict[str, Any]) -> TensorLayout:
    names = ("max_precond_dim", "merge_dims", "precondition_1d", "one_sided", "data_format")
    return tensor_layout(tuple(p.shape), **{name: group[name] for name in names})


def _precision(p: Tensor) -> torch.dtype:
    return torch.float64 if p.dtype == torch.float64 else torch.float32


def _gradient(p: Tensor, layout: TensorLayout, maximize: bool) -> Tensor:
    assert p.grad is not None
    grad = layout.view(p.grad.to(_precision(p)))
    return -grad if maximize else grad


def _initial_state(p: Tensor, layout: TensorLayout, factored: bool) -> dict[str, Tensor]:
    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=_precision(p), device=p.device)

    shape = layout.shape
    state = {"step": torch.tensor(0.0), "exp_avg": zeros(*shape)}  # the step stays on the CPU, as in torch
    if factored and len(shape) == 2:
        state |= {"exp_avg_sq_row": zeros(shape[0]), "exp_avg_sq_col": zeros(shape[1])}
    else:
        state["exp_avg_sq"] = zeros(*shape)
    for axis in layout.axes:
        state |= {f"{name}_{axis}": zeros(shape[axis], shape[axis]) for name in ("gram", "basis")}
    return state


def _loaded(name: str, value: Any, p: Tensor) -> Any:
    """Return a saved value on the parameter's device, in the state's own precision."""
    if not isinstance(value, Tensor) or name == "step":
        return value
    loaded = value.to(device=p.device, dtype=_precision(p)).contiguous()
    if name.startswith("basis_") and kronecker_basis.departure_from_orthogonality(loaded).item() > 1e-3:
        return kronecker_basis.orthogonalize(loaded)  # it was saved in a lower precision
    return loaded


# --- what is refused ---------------------------------------------------------------------------------------------


def _with_gradients(group: dict[str, Any]) -> list[Tensor]:
    params = [p for p in group["params"] if p.grad is not None and p.numel()]
    for p in params:
        if p.grad.layout != torch.strided or p.grad.is_complex():
            what = "complex" if p.grad.is_complex() else "sparse"
            raise RuntimeError(f"SOAP takes neither sparse nor complex gradients, that of {_name(p, group)} is {what}")
    return params


def _may_step(group: dict[str, Any], params: list[Tensor]) -> bool:
    """Return whether gradients are finite; raise if the group is set to."""
    if group["nonfinite"] == "unchecked" or not params or params[0].is_meta:
        return True
    # A square that overflows would make the Gram matrix infinite too.
    finite = torch.stack(_squares(params)).isfinite()
    if finite.all():
        return True
    if group["nonfinite"] == "raise":
        p = params[int(finite.logical_not().nonzero()[0])]
        raise RuntimeError(
            f"the gradient of {_name(p, group)} has no finite norm; nothing was changed "
            "(nonfinite='skip' leaves such steps out)"
        )
    return False


def _squares(params: list[Tensor]) -> list[Tensor]:
    """Return the squared norms of the gradients in the state's precision, on one device."""
    grads = [p.grad.to(_precision(p)).ravel() for p in params if p.grad is not None]
    squares = list(map(torch.dot, grads, grads))
    if len({g.dtype for g in grads}) > 1 or len({g.device for g in grads}) > 1:
        return [square.double().to(squares[0].device) for square in squares]
    return squares


def _require_fitting(
    state: dict[str, Any], layout: TensorLayout, group: dict[str, Any], name: Callable[[], str]
) -> None:
    shape = tuple(state["exp_avg"].shape) if "exp_avg" in state else None
    axes = tuple(axis for axis in range(len(layout.shape)) if f"basis_{axis}" in state)
    factored, wanted = "exp_avg_sq_row" in state, group["factored"] and len(layout.shape) == 2
    if (shape, axes, factored) != (layout.shape, layout.axes, wanted):
        raise ValueError(
            f"the state of {name()} has shape {shape}, bases along axes {axes} and factored={factored}; its settings "
            f"need shape {layout.shape}, bases along axes {layout.axes} and factored={wanted}. These cannot change "
            "once a parameter has state"
        )


def _name(p: Tensor, group: dict[str, Any]) -> str:
    index = next(i for i, q in enumerate(group["params"]) if q is p)
    name = repr(group["param_names"][index]) if "param_names" in group else f"number {index} of its group"
    return f"parameter {name} (shape {tuple(p.shape)})"


def _require_valid(settings: dict[str, Any]) -> None:
    def require(name: str, valid: bool, wanted: str) -> None:
        if not valid:
            raise ValueError(f"{name} must be {wanted}, got {settings[name]!r}")

    betas, beta, decay = settings["betas"], settings["shampoo_beta"], settings["weight_decay"]
    require("lr", float(settings["lr"]) >= 0, "0 or more")
    require("betas", len(betas) == 2 and all(0 <= b < 1 for b in betas), "two numbers in [0, 1)")
    require("shampoo_beta", beta is None or 0 <= beta < 1, "None or in [0, 1)")
    require("eps", settings["eps"] >= 0, "0 or more")
    require("weight_decay", decay >= 0, "0 or more")
    for name in ("precondition_frequency", "max_precond_dim"):
        value = settings[name]
        require(name, isinstance(value, int) and not isinstance(value, bool) and value >= 1, "an integer, 1 or more")
    words = {"null_space": NullSpace, "data_format": DataFormat, "refresh": Refresh, "nonfinite": Nonfinite}
    for name, choices in words.items():
        require(name, settings[name] in get_args(choices), f"one of {get_args(choices)}")


def _order(state: dict[str, Any]) -> int:
    return state["exp_avg"].dim() if state else 0
