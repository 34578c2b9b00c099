"""Layers that keep training stable."""

from poise.nn.balance_ratio import balance_ratio
from poise.nn.diagonal_linear import DiagonalLinear
from poise.nn.layer_norm_cells import LayerNormGRUCell, LayerNormLSTMCell, LayerNormRNNCell
from poise.nn.layer_norm_recurrent import LayerNormGRU, LayerNormLSTM, LayerNormRNN
from poise.nn.logit_scale import transplant_logit_scale
from poise.nn.path_norm import path_norm
from poise.nn.qk_norm import QKNorm
from poise.nn.unified_norm import ReferenceUnifiedNorm, UnifiedNorm

__all__ = [
    "DiagonalLinear",
    "LayerNormGRU",
    "LayerNormGRUCell",
    "LayerNormLSTM",
    "LayerNormLSTMCell",
    "LayerNormRNN",
    "LayerNormRNNCell",
    "QKNorm",
    "ReferenceUnifiedNorm",
    "UnifiedNorm",
    "balance_ratio",
    "path_norm",
    "transplant_logit_scale",
]
