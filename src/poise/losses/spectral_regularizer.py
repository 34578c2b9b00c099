"""A penalty on largest singular values that are not one, so that a network stays trainable over many tasks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

_COLD_START = 20
_TINY = 1e-12
_NORMS = ("LayerNorm", "RMSNorm", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "GroupNorm", "SyncBatchNorm")


@dataclass(slots=True)
class _Matrix:
    """One matrix of the model: a weight, or a part of one."""

    name: str
    parameter: nn.Parameter
    part: tuple[int, int]  # rows
    u: Tensor
    v: Tensor
    target: float = 1.0

    def weight(self) -> Tensor:
        flat = self.parameter.flatten(1)
        return flat if self.part == (0, len(flat)) else flat[self.part[0] : self.part[1]]


class SpectralRegularizer:
    r"""Penalise how far the largest singular value of each layer is from one.

    .. math:: \sum_l \left[ (\sigma_l^k - 1)^2 + \lVert b_l \rVert^{2k} \right]

    Networks that are trained on one task after the other become hard to train: singular values leave the range that
    they had at initialisation. The largest one is followed by power iteration, one step a call, from a vector that is
    kept. Kernels of convolutions count as matrices (out, the rest), whose norm differs from that of the convolution
    by at most the root of the kernel's size. A fused projection of ``nn.MultiheadAttention`` counts as three
    matrices. Gains of normalisations are pulled to one, :math:`\sum_i (\gamma_i^k - 1)^2`, their biases to zero like
    all others.

    Args:
        model: what is regularised, the output layer included. Frozen parameters are left out, tied ones count once.
        k: :math:`k`; above 1 it is steep far from one and flat near it.
        target: what takes the place of the one: a number, or ``"init"`` for each layer's own value now.
        iterations: of the power method a call.
        include: patterns of names of parameters; all by default.
        exclude: patterns of names of parameters to leave out.
        norm: whether normalisations are pulled to the identity.
        bias: whether biases count.
        seed: of the start vectors.

    Attributes:
        skipped: names of parameters that are not regularised.

    Raises:
        ValueError: if the model has no matrix to regularise, ``k``, ``target`` or ``iterations`` is not positive, or a
            weight is not finite.

    Warns:
        UserWarning: if a matrix is zero: its singular value has no gradient.

    References:
        Lewandowski et al., "Learning continually by spectral regularization", ICLR 2025, arXiv:2406.06811.

    Example:
        >>> penalty = SpectralRegularizer(model)
        >>> loss = F.cross_entropy(model(x), y) + 1e-2 * penalty()
    """

    def __init__(
        self,
        model: nn.Module,
        k: float = 2,
        target: float | Literal["init"] = 1.0,
        iterations: int = 1,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        norm: bool = True,
        bias: bool = True,
        seed: int = 0,
    ) -> None:
        if not k > 0 or iterations < 1 or (target != "init" and not float(target) > 0):
            raise ValueError(f"k, target and iterations must be positive, got {k}, {target!r} and {iterations}")
        self.k, self.target, self.iterations, self.include, self.exclude = k, target, iterations, include, exclude
        self.norm, self.bias = norm, bias
        self._model, self._generator = model, torch.Generator().manual_seed(seed)
        self.rebuild()

    def rebuild(self) -> None:
        """Look at the model again, after its structure changed; all power iterations begin anew.

        Raises:
            ValueError: as the constructor.
        """
        self._matrices: list[_Matrix] = []
        self._gains: list[tuple[str, nn.Parameter]] = []
        self._biases: list[tuple[str, nn.Parameter]] = []
        self.skipped: list[str] = []
        for name, parameter, kind in _parameters(self._model):
            if not parameter.requires_grad or not self._is_chosen(name):
                self.skipped.append(name)
            elif parameter.ndim >= 2:
                self._matrices += list(self._split(name, parameter))
            elif kind == "gain" and self.norm:
                self._gains.append((name, parameter))
            elif kind == "bias" and self.bias:
                self._biases.append((name, parameter))
            else:
                self.skipped.append(name)
        if not self._matrices:
            raise ValueError(f"model must have a matrix that is trained, got none; left out were {self.skipped[:10]}")
        self._shapes = [m.parameter.shape for m in self._matrices]
        for matrix in self._matrices:
            s = float(self._iterate(matrix, _COLD_START))
            if self.target == "init":
                matrix.target = max(s, _TINY)
            else:
                matrix.target = float(self.target)

    def __call__(self) -> Float[Tensor, ""]:
        """Return the penalty, to be multiplied by a coefficient (1e-2 is a good start) and added to the loss.

        Raises:
            RuntimeError: if a parameter has another shape than before; call :meth:`rebuild`.
            ValueError: if a weight is not finite.
        """
        return torch.stack([term for _, term in self._terms()]).sum()

    def per_layer(self) -> dict[str, float]:
        """Return the terms of the penalty by name of the parameter."""
        return {name: float(term.detach()) for name, term in self._terms()}

    def singular_values(self) -> dict[str, float]:
        """Return the estimates of the largest singular values; they are no larger than the true ones."""
        return {m.name: float((m.weight().detach().to(m.v.dtype) @ m.v).norm()) for m in self._matrices}

    @torch.no_grad()
    def decay_(self, rate: float) -> None:
        """Move the parameters down the penalty's own gradient, after the optimizer's step.

        An adaptive optimizer divides the gradient of a penalty that is in the loss by the size of the loss's gradients;
        decoupled from it, as weight decay in AdamW, the penalty acts as strongly in every layer.

        Args:
            rate: step along the gradient, such as the learning rate times the coefficient.
        """
        params = list({id(p): p for p in self._trained()}.values())
        with torch.enable_grad():
            grads = torch.autograd.grad(self(), params, allow_unused=True)
        for p, g in zip(params, grads, strict=True):
            if g is not None:
                p.sub_(g, alpha=rate)

    def state_dict(self) -> dict[str, Any]:
        """Return the vectors of the power iterations and the targets."""
        return {m.name: {"u": m.u.clone(), "v": m.v.clone(), "target": m.target} for m in self._matrices}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state_dict`.

        Raises:
            ValueError: if it is of a model with other matrices.
        """
        if set(state) != {m.name for m in self._matrices}:
            raise ValueError(f"state must be of matrices named {[m.name for m in self._matrices]}, got {list(state)}")
        for m in self._matrices:
            own = state[m.name]
            m.u, m.v, m.target = own["u"].clone(), own["v"].clone(), own["target"]

    def _terms(self) -> Iterator[tuple[str, Tensor]]:
        for matrix, shape in zip(self._matrices, self._shapes, strict=True):
            if matrix.parameter.shape != shape:
                raise RuntimeError(
                    f"{matrix.name} has the shape {tuple(matrix.parameter.shape)}, not {tuple(shape)}: call rebuild()"
                )
            value = self._iterate(matrix, self.iterations)
            s = _Sigma.apply(matrix.weight(), matrix.u, matrix.v, value)
            yield matrix.name, (s**self.k - matrix.target**self.k) ** 2
        for name, gain in self._gains:
            yield name, ((gain.float() ** self.k - 1) ** 2).sum()
        for name, bias in self._biases:
            yield name, bias.float().square().sum() ** self.k

    @torch.no_grad()
    def _iterate(self, matrix: _Matrix, times: int) -> Tensor:
        """Move the vectors of a matrix; return the estimate of its largest singular value."""
        w = matrix.weight().detach().to(matrix.u.dtype)
        for _ in range(times):
            back = torch.mv(w.t(), matrix.u)
            matrix.v = back / back.norm().clamp_min(_TINY)
            forth = torch.mv(w, matrix.v)
            s = forth.norm()
            matrix.u = forth / s.clamp_min(_TINY)
        if times > 1:
            if not bool(torch.isfinite(s)):
                raise ValueError(f"weights must be finite, got NaN or infinities in {matrix.name}")
            if float(s) == 0:
                warnings.warn(f"{matrix.name} is zero: its singular value has no gradient", UserWarning, stacklevel=4)
                matrix.u = torch.randn(len(matrix.u), generator=self._generator).to(matrix.u)
        return s

    def _split(self, name: str, parameter: nn.Parameter) -> Iterator[_Matrix]:
        rows, dtype = parameter.shape[0], torch.promote_types(parameter.dtype, torch.float32)
        columns, parts = parameter.numel() // rows, 3 if name.endswith("in_proj_weight") else 1
        for i in range(parts):
            start, end = i * rows // parts, (i + 1) * rows // parts
            u = torch.randn(end - start, generator=self._generator).to(parameter.device, dtype)
            part = name if parts == 1 else f"{name}[{'qkv'[i]}]"
            yield _Matrix(part, parameter, (start, end), u / u.norm(), u.new_zeros(columns))

    def _is_chosen(self, name: str) -> bool:
        return any(fnmatchcase(name, p) for p in self.include) and not any(fnmatchcase(name, p) for p in self.exclude)

    def _trained(self) -> Iterator[nn.Parameter]:
        yield from (m.parameter for m in self._matrices)
        yield from (p for _, p in (*self._gains, *self._biases))


class _Sigma(torch.autograd.Function):
    """The singular value of given vectors, which are constants: its gradient is the outer product of them."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, u: Tensor, v: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(u, v)
        ctx.dtype = weight.dtype
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        u, v = ctx.saved_tensors
        return torch.outer(u * grad, v).to(ctx.dtype), None, None, None


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, str]]:
    """Yield each parameter once, with what it is."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        is_norm = type(module).__name__ in _NORMS
        for name, parameter in module._parameters.items():
            if parameter is None or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            kind = "gain" if is_norm and name == "weight" else "bias" if "bias" in name else "other"
            yield f"{prefix}.{name}".lstrip("."), parameter, kind
