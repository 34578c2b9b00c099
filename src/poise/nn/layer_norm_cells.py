"""Recurrent cells whose summed inputs are normalised over the units, separately for every case and time step."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

State = tuple[Tensor, ...]


class RecurrentCell(nn.Module):
    """What a stack needs of a cell: the input's part for all time steps at once, then one step after the other.

    Args:
        gates: how many gates of ``hidden_size`` units the cell has.
        input_size: features of the input.
        hidden_size: units.
        eps: added to the variance.
        device: where parameters live.
        dtype: dtype of the parameters.

    Raises:
        ValueError: if ``input_size`` is below 1, ``hidden_size`` below 2 or ``eps`` is not positive.
    """

    states = 1
    """How many tensors a state has."""

    def __init__(
        self, gates: int, input_size: int, hidden_size: int, eps: float, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        if input_size < 1:
            raise ValueError(f"input_size must be at least 1, got {input_size}")
        if hidden_size < 2:  # the output would be the same for every input
            raise ValueError(f"hidden_size must be at least 2 (one unit normalises to a constant), got {hidden_size}")
        if not eps > 0:
            raise ValueError(f"eps must be positive, got {eps}")
        self.input_size, self.hidden_size, self.eps = input_size, hidden_size, eps
        factory = {"device": device, "dtype": dtype}
        self.weight_ih = nn.Parameter(torch.empty(gates * hidden_size, input_size, **factory))
        self.weight_hh = nn.Parameter(torch.empty(gates * hidden_size, hidden_size, **factory))

    @abstractmethod
    def project(self, x: Float[Tensor, "n input"]) -> Float[Tensor, "n gates"]:
        """The input's part of the gates, which no state enters."""

    @abstractmethod
    def step(self, projected: Float[Tensor, "batch gates"], state: State) -> State:
        """One time step; the first tensor of a state is the output."""

    def reset_parameters(self) -> None:
        """Weights uniform in ``1 / sqrt(hidden_size)`` as in torch; gains one, biases zero."""
        bound = 1 / math.sqrt(self.hidden_size)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.startswith("weight"):
                    parameter.uniform_(-bound, bound)
                else:
                    parameter.fill_(1.0 if name.startswith("gain") else 0.0)

    def initial(self, x: Float[Tensor, "n input"], batch: int) -> State:
        """A state of zeros."""
        return tuple(x.new_zeros(batch, self.hidden_size) for _ in range(self.states))

    def extra_repr(self) -> str:
        """Show the sizes in the module's ``repr``."""
        return f"{self.input_size}, {self.hidden_size}"

    def _vector(self, size: int, device: Any, dtype: Any) -> nn.Parameter:
        return nn.Parameter(torch.empty(size, device=device, dtype=dtype))

    def _norm(self, x: Tensor, gain: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], gain, bias, self.eps)

    def _require_input(self, x: Tensor) -> Tensor:
        if x.ndim not in (1, 2) or x.shape[-1] != self.input_size:
            raise ValueError(f"input must have shape (batch, {self.input_size}) or one row of it, got {tuple(x.shape)}")
        return x if x.ndim == 2 else x[None]


class LayerNormLSTMCell(RecurrentCell):
    r"""LSTM cell with layer normalisation.

    .. math:: a = \mathrm{LN}(W_h h) + \mathrm{LN}(W_x x) + b, \qquad
        c' = \sigma(f) c + \sigma(i) \tanh(g), \qquad h' = \sigma(o) \tanh(\mathrm{LN}(c'))

    Each norm of the gates is over all four of them at once, and what is carried on is the cell state itself, not its
    norm. The order of the gates is torch's: i, f, g, o. Of the three biases that the published form adds up, one is
    kept.

    Args:
        input_size: features of the input.
        hidden_size: units.
        bias: whether the gates have a bias.
        eps: added to the variance.
        normalize_gates: ``False`` normalises the cell state only.
        forget_bias: initial bias of the forget gate.
        device: where parameters live.
        dtype: dtype of the parameters.

    Raises:
        ValueError: if ``input_size`` is below 1, ``hidden_size`` below 2, ``eps`` is not positive, or in ``forward``
            shapes do not fit.

    References:
        Ba, Kiros and Hinton, "Layer Normalization", 2016, arXiv:1607.06450.
    """

    states = 2

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        eps: float = 1e-5,
        *,
        normalize_gates: bool = True,
        forget_bias: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(4, input_size, hidden_size, eps, device, dtype)
        self.forget_bias = forget_bias
        size = 4 * hidden_size
        self.gain_ih = self._vector(size, device, dtype) if normalize_gates else None
        self.gain_hh = self._vector(size, device, dtype) if normalize_gates else None
        self.bias = self._vector(size, device, dtype) if bias else None
        self.gain_c, self.bias_c = (self._vector(hidden_size, device, dtype) for _ in range(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights as in torch, gains one, biases zero but for the forget gate's."""
        super().reset_parameters()
        if self.bias is not None:
            nn.init.constant_(self.bias.data[self.hidden_size : 2 * self.hidden_size], self.forget_bias)

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Return the next ``(h, c)``; as ``nn.LSTMCell``.

        Raises:
            ValueError: if ``input`` is neither one row of ``input_size`` features nor a batch of them.
        """
        x = self._require_input(input)
        state = self.initial(x, len(x)) if hx is None else tuple(s.reshape(len(x), -1) for s in hx)
        h, c = self.step(self.project(x), state)
        return (h, c) if input.ndim == 2 else (h[0], c[0])

    def project(self, x: Float[Tensor, "n input"]) -> Float[Tensor, "n gates"]:
        """LN(W_x x) + b."""
        if self.gain_ih is None:
            return F.linear(x, self.weight_ih, self.bias)
        return self._norm(F.linear(x, self.weight_ih), self.gain_ih, self.bias)

    def step(self, projected: Float[Tensor, "batch gates"], state: State) -> State:
        """Next output and cell state."""
        h, c = state
        recurrent = F.linear(h, self.weight_hh)
        a = projected + (recurrent if self.gain_hh is None else self._norm(recurrent, self.gain_hh))
        i, f, g, o = a.chunk(4, -1)
        c = torch.addcmul(f.sigmoid() * c, i.sigmoid(), g.tanh())
        return o.sigmoid() * self._norm(c, self.gain_c, self.bias_c).tanh(), c


class LayerNormGRUCell(RecurrentCell):
    r"""GRU cell with layer normalisation.

    .. math:: [r; z] = \mathrm{LN}(W_h h) + \mathrm{LN}(W_x x) + b, \quad
        n = \tanh(\mathrm{LN}(W x) + b_n + \sigma(r)\,(\mathrm{LN}(U h) + b_{hn})), \quad
        h' = (1 - \sigma(z)) h + \sigma(z) n

    The norms are over r and z together, and over n. Rows are in torch's order r, z, n; torch's z multiplies the old
    state, the published one the new. Of the two published biases of r and z, which add up, one is kept; those of n do
    not, because the reset gate multiplies one of them.

    Args:
        input_size: features of the input.
        hidden_size: units.
        bias: whether there are biases: one of all gates, and ``bias_hn`` of the candidate's recurrent part.
        eps: added to the variance.
        device: where parameters live.
        dtype: dtype of the parameters.

    Raises:
        ValueError: if ``input_size`` is below 1, ``hidden_size`` below 2, ``eps`` is not positive, or in ``forward``
            shapes do not fit.

    References:
        Ba, Kiros and Hinton, 2016, arXiv:1607.06450.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        eps: float = 1e-5,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(3, input_size, hidden_size, eps, device, dtype)
        self.gain_ih, self.gain_hh = (self._vector(3 * hidden_size, device, dtype) for _ in range(2))
        self.bias = self._vector(3 * hidden_size, device, dtype) if bias else None
        self.bias_hn = self._vector(hidden_size, device, dtype) if bias else None
        self.reset_parameters()

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Return the next state; as ``nn.GRUCell``.

        Raises:
            ValueError: if ``input`` is neither one row of ``input_size`` features nor a batch of them.
        """
        x = self._require_input(input)
        state = self.initial(x, len(x)) if hx is None else (hx.reshape(len(x), -1),)
        (h,) = self.step(self.project(x), state)
        return h if input.ndim == 2 else h[0]

    def project(self, x: Float[Tensor, "n input"]) -> Float[Tensor, "n gates"]:
        """LN(W_x x) + b, over r and z and over n."""
        cut = 2 * self.hidden_size
        biases = (None, None) if self.bias is None else (self.bias[:cut], self.bias[cut:])
        return torch.cat(self._norm_parts(F.linear(x, self.weight_ih), self.gain_ih, *biases), -1)

    def step(self, projected: Float[Tensor, "batch gates"], state: State) -> State:
        """Next state."""
        (h,) = state
        cut = 2 * self.hidden_size
        gates, candidate = self._norm_parts(F.linear(h, self.weight_hh), self.gain_hh, None, self.bias_hn)
        r, z = (projected[:, :cut] + gates).sigmoid().chunk(2, -1)
        n = torch.addcmul(projected[:, cut:], r, candidate).tanh()
        return (h + z * (n - h),)  # not lerp: under autocast the dtypes differ

    def _norm_parts(
        self, a: Tensor, gain: Tensor, gates: Tensor | None, candidate: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The rows of r and z normalised, and those of n, each with its bias."""
        cut = 2 * self.hidden_size
        return self._norm(a[:, :cut], gain[:cut], gates), self._norm(a[:, cut:], gain[cut:], candidate)


class LayerNormRNNCell(RecurrentCell):
    r"""Elman cell with layer normalisation, :math:`h' = f(\mathrm{LN}(W_h h + W_x x))`.

    Args:
        input_size: features of the input.
        hidden_size: units.
        bias: whether the norm has a bias.
        eps: added to the variance.
        nonlinearity: ``"tanh"`` or ``"relu"``.
        device: where parameters live.
        dtype: dtype of the parameters.

    Raises:
        ValueError: if ``input_size`` is below 1, ``hidden_size`` below 2, ``eps`` is not positive, ``nonlinearity`` is
            unknown, or in ``forward`` shapes do not fit.

    References:
        Ba, Kiros and Hinton, 2016, arXiv:1607.06450.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        eps: float = 1e-5,
        *,
        nonlinearity: Literal["tanh", "relu"] = "tanh",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(1, input_size, hidden_size, eps, device, dtype)
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
        self.nonlinearity = torch.tanh if nonlinearity == "tanh" else torch.relu
        self.gain = self._vector(hidden_size, device, dtype)
        self.bias = self._vector(hidden_size, device, dtype) if bias else None
        self.reset_parameters()

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Return the next state; as ``nn.RNNCell``.

        Raises:
            ValueError: if ``input`` is neither one row of ``input_size`` features nor a batch of them.
        """
        x = self._require_input(input)
        state = self.initial(x, len(x)) if hx is None else (hx.reshape(len(x), -1),)
        (h,) = self.step(self.project(x), state)
        return h if input.ndim == 2 else h[0]

    def project(self, x: Float[Tensor, "n input"]) -> Float[Tensor, "n gates"]:
        """W_x x; the norm is over the sum."""
        return F.linear(x, self.weight_ih)

    def step(self, projected: Float[Tensor, "batch gates"], state: State) -> State:
        """Next state."""
        (h,) = state
        return (self.nonlinearity(self._norm(projected + F.linear(h, self.weight_hh), self.gain, self.bias)),)
