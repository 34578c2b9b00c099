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
_ITERATIONS = 8  # an error of the norm's logarithm is divided by the number of steps


@dataclass(frozen=True, slots=True)
class HiddenStateGain:
    r"""The gain of one recurrent layer.

    Attributes:
        name: of the layer.
        steps: T, time steps.
        log_gain: logarithm of the spectral norm of :math:`\partial h_T / \partial h_0`, largest of a few samples.
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
        return math.exp(self.log_gain / self.steps)


def hidden_state_gain(model: nn.Module, run: Callable[[], Any]) -> list[HiddenStateGain]:
    r"""Return the gain of every LSTM, GRU and Elman network in a model, of torch and of :mod:`poise.nn`.

    The norm of :math:`\partial h_T / \partial h_0` (of all layers; the cell state of an LSTM is held) comes from power
    iteration on products with the Jacobian and its transpose. The first four samples and 200 steps of a batch are used.

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


def _log_norms(layer: Any, x: Float[Tensor, "..."]) -> Float[Tensor, " samples"]:
    """Logarithms of the spectral norms of all samples at once: the Jacobian of a batch is block diagonal."""
    samples = x.shape[0 if layer.batch_first else 1]
    shape = (
        layer.num_layers * (2 if layer.bidirectional else 1),
        samples,
        getattr(layer, "proj_size", 0) or layer.hidden_size,
    )
    with torch.enable_grad():
        start = x.new_zeros(shape).requires_grad_()
        first: Any = start
        if isinstance(layer, nn.LSTM | LayerNormLSTM):
            first = (start, x.new_zeros(shape[0], samples, layer.hidden_size))
        last = layer(x, first)[1]
        end = last[0] if isinstance(last, tuple) else last
        dual = torch.zeros_like(end, requires_grad=True)
        back = torch.autograd.grad(end, start, dual, create_graph=True)[0]
    generator = torch.Generator(x.device).manual_seed(0)
    v = torch.randn(shape, dtype=x.dtype, device=x.device, generator=generator)
    for _ in range(_ITERATIONS):
        v = v / _sizes(v)
        # The product with the transpose is linear in its vector; its own transpose is the Jacobian.
        u = torch.autograd.grad(back, dual, v, retain_graph=True)[0]
        v = torch.autograd.grad(end, start, u, retain_graph=True)[0]
    return _sizes(v).flatten().log() / 2  # v was multiplied by the transpose times the Jacobian


def _sizes(v: Float[Tensor, "layers samples units"]) -> Float[Tensor, "1 samples 1"]:
    return torch.linalg.vector_norm(v, dim=(0, 2), keepdim=True).clamp_min(torch.finfo(v.dtype).tiny)
