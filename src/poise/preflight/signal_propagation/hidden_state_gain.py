"""How much a recurrent layer's last hidden state depends on its first: growth or decay per step."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from poise.nn import LayerNormGRU, LayerNormLSTM, LayerNormRNN

_RECURRENT = (nn.RNNBase, LayerNormLSTM, LayerNormGRU, LayerNormRNN)
_SAMPLES = 4  # of a batch
_LONGEST = 200  # time steps
_LOG_LARGEST = math.log(torch.finfo(torch.float64).max)
_ITERATIONS = 8  # an error of the norm's logarithm is divided by the number of steps


@dataclass(frozen=True, slots=True)
class HiddenStateGain:
    r"""The gain of one recurrent layer.

    Attributes:
        name: of the layer.
        steps: T, time steps.
        log_gain: logarithm of the spectral norm of :math:`\partial h_T / \partial h_0`, largest of a few samples;
            minus infinity if the last hidden state does not depend on the first.
        rho: the same per step, :math:`\exp(\text{log\_gain} / T)`.
        std: standard deviation of the hidden states of all steps.
    """

    name: str
    steps: int
    log_gain: float
    std: float

    @property
    def rho(self) -> float:
        """Factor per step."""
        per_step = self.log_gain / self.steps
        return math.exp(per_step) if per_step < _LOG_LARGEST else math.inf


def hidden_state_gain(model: nn.Module, run: Callable[[], Any]) -> list[HiddenStateGain]:
    r"""Return the gain of every LSTM, GRU and Elman network in a model, of torch and of :mod:`poise.nn`.

    The norm of :math:`\partial h_T / \partial h_0` (of all layers; the cell state of an LSTM is held) comes from power
    iteration on products with the Jacobian and its transpose, whose vectors are rescaled after every time step: the
    gain may be beyond the range of floats. (That of a bidirectional layer may not: it is then 0, or not a number.
    Its steps cannot be taken one by one.) The first four samples and 200 steps of a batch are used.

    Args:
        model: any module.
        run: calls the model on a batch; the recurrent layers' inputs are taken from that.

    Returns:
        One entry per layer that was called, in the order of the model; empty without recurrent layers.

    References:
        Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", ICML 2013.
        Ba, Kiros and Hinton, "Layer Normalization", 2016, arXiv:1607.06450.
    """
    layers: dict[nn.Module, str] = {
        m: name or type(m).__name__ for name, m in model.named_modules() if isinstance(m, _RECURRENT)
    }
    inputs: dict[nn.Module, Any] = {}

    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        inputs.setdefault(module, args[0])

    handles = [m.register_forward_pre_hook(keep) for m in layers]
    try:
        with torch.no_grad():
            if layers:
                run()
    finally:
        for handle in handles:
            handle.remove()
    return [_gain(m, layers[m], x) for m, x in inputs.items() if _is_usable(x)]


def _is_usable(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dim() == 3 and not isinstance(x, PackedSequence)


def _gain(layer: Any, name: str, x: Float[Tensor, "..."]) -> HiddenStateGain:
    x = x.detach() if layer.batch_first else x.detach().transpose(0, 1)
    # In double precision: a factor of 1/2 per step underflows in float32 after 150 steps.
    twin, x = copy.deepcopy(layer).double(), x[:_SAMPLES, :_LONGEST].double()
    twin.dropout = 0.0
    x = x if layer.batch_first else x.transpose(0, 1)
    log_gain = float(_log_norms(twin, x).max())
    with torch.no_grad():
        states = twin(x)[0]
    return HiddenStateGain(name, x.shape[1 if layer.batch_first else 0], log_gain, float(states.std()))


@dataclass(frozen=True, slots=True)
class _Piece:
    """The derivative of a recurrent layer's state after some time steps in its state before them.

    Args:
        start: state before, hidden and cell states side by side.
        end: state after.
        dual: a vector of the shape of the end.
        back: the product of the Jacobian's transpose with it: linear in it, and its own transpose is the Jacobian.
    """

    start: Float[Tensor, "layers samples units"]
    end: Float[Tensor, "layers samples units"]
    dual: Float[Tensor, "layers samples units"]
    back: Float[Tensor, "layers samples units"]

    @classmethod
    def of(cls, layer: Any, x: Float[Tensor, "..."], state: Float[Tensor, "layers samples units"]) -> _Piece:
        start = state.detach().requires_grad_()
        hidden = _hidden_units(layer)
        has_cells = state.shape[-1] > hidden
        first = (start[..., :hidden].contiguous(), start[..., hidden:].contiguous()) if has_cells else start
        last = layer(x, first)[1]
        end = torch.cat(last, dim=-1) if has_cells else last
        dual = torch.zeros_like(end, requires_grad=True)
        return cls(start, end, dual, torch.autograd.grad(end, start, dual, create_graph=True)[0])

    def times(self, v: Tensor) -> Tensor:
        """Return the product of the Jacobian with a vector."""
        return torch.autograd.grad(self.back, self.dual, v, retain_graph=True)[0]

    def transposed_times(self, u: Tensor) -> Tensor:
        """Return the product of the Jacobian's transpose with a vector."""
        return torch.autograd.grad(self.end, self.start, u, retain_graph=True)[0]


def _log_norms(layer: Any, x: Float[Tensor, "..."]) -> Float[Tensor, " samples"]:
    """Logarithms of the spectral norms of all samples at once: the Jacobian of a batch is block diagonal."""
    pieces = _pieces(layer, x)
    hidden = _hidden_units(layer)
    v = torch.zeros_like(pieces[0].start)
    generator = torch.Generator(x.device).manual_seed(0)
    v[..., :hidden] = torch.randn((*v.shape[:-1], hidden), dtype=x.dtype, device=x.device, generator=generator)
    v, log_size = _rescaled(v)
    for _ in range(_ITERATIONS):
        log_size = torch.zeros_like(log_size)
        for products in ([p.times for p in pieces], [p.transposed_times for p in reversed(pieces)]):
            for multiply in products:
                v, log = _rescaled(multiply(v))
                log_size = log_size + log
            v[..., hidden:] = 0.0  # the derivative is that of the hidden state, the first cell state being held
            v, log = _rescaled(v)
            log_size = log_size + log
    return log_size / 2  # v was multiplied by the transpose times the Jacobian


def _pieces(layer: Any, x: Float[Tensor, "..."]) -> list[_Piece]:
    """Return the derivatives of all time steps; of the whole sequence at once if the layer runs in both directions."""
    samples, time = (0, 1) if layer.batch_first else (1, 0)
    cells = layer.hidden_size if isinstance(layer, nn.LSTM | LayerNormLSTM) else 0
    directions = 2 if layer.bidirectional else 1
    state = x.new_zeros(layer.num_layers * directions, x.shape[samples], _hidden_units(layer) + cells)
    pieces = []
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):  # cuDNN has no second derivative
        for part in [x] if layer.bidirectional else x.split(1, dim=time):
            pieces.append(_Piece.of(layer, part, state))
            state = pieces[-1].end
    return pieces


def _hidden_units(layer: Any) -> int:
    return getattr(layer, "proj_size", 0) or layer.hidden_size


def _rescaled(v: Float[Tensor, "layers samples units"]) -> tuple[Tensor, Float[Tensor, " samples"]]:
    """Return vectors of length one and the logarithms of their lengths; what is zero stays so."""
    largest = v.abs().amax(dim=(0, 2), keepdim=True)
    v = torch.where(largest > 0, v / largest, 0.0)  # now the squares of the entries fit
    length = torch.linalg.vector_norm(v, dim=(0, 2), keepdim=True)
    log_size = (largest.log() + length.log()).flatten()
    return torch.where(length > 0, v / length, 0.0), log_size
