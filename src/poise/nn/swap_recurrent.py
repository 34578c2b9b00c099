"""Put layer-normalised recurrent stacks in the place of torch's."""

from __future__ import annotations

from torch import nn

from poise.nn.layer_norm_recurrent import LayerNormGRU, LayerNormLSTM, LayerNormRNN
from poise.nn.surgery import Surgery, kinds, named, replace


def swap_recurrent(model: nn.Module) -> Surgery:
    """Exchange every ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` for its layer-normalised counterpart, in place.

    Weights are kept, norms are new: outputs change, so train afterwards. A state_dict from before still loads.

    Args:
        model: any module.

    Returns:
        What was exchanged and what was not.

    Raises:
        ValueError: if the model has no recurrent layer.

    References:
        Ba, Kiros and Hinton, "Layer Normalization", 2016, arXiv:1607.06450.

    Example:
        >>> model = nn.ModuleDict({"memory": nn.LSTM(4, 8)})
        >>> swap_recurrent(model).changed
        {'memory': 'LSTM to LayerNormLSTM'}
    """
    changed, skipped = {}, {}
    for name, old in named(model, lambda module: isinstance(module, nn.RNNBase | nn.RNNCellBase)):
        if isinstance(old, nn.RNNCellBase):
            skipped[name] = "it is a single cell; LayerNormLSTMCell and its like take its arguments"
        elif isinstance(old, nn.LSTM) and old.proj_size:
            skipped[name] = "an LSTM with a projection has no counterpart"
        else:
            new = _counterpart(old)
            replace(model, old, new)
            changed[name] = f"{type(old).__name__} to {type(new).__name__}"
    if not changed and not skipped:
        raise ValueError(f"model has no recurrent layer; its modules are {kinds(model)}")
    return Surgery("Recurrent layers with layer normalisation", changed, skipped)


def _counterpart(old: nn.Module) -> nn.Module:
    if isinstance(old, nn.LSTM):
        return LayerNormLSTM.from_torch(old)
    if isinstance(old, nn.GRU):
        return LayerNormGRU.from_torch(old)
    assert isinstance(old, nn.RNN)
    return LayerNormRNN.from_torch(old)
