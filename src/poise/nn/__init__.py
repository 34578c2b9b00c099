"""Layers that keep training stable."""

from poise.nn.balance_ratio import balance_ratio
from poise.nn.diagonal_linear import DiagonalLinear
from poise.nn.embedding_layer_norm import EmbeddingLayerNorm
from poise.nn.layer_norm_cells import LayerNormGRUCell, LayerNormLSTMCell, LayerNormRNNCell
from poise.nn.layer_norm_recurrent import LayerNormGRU, LayerNormLSTM, LayerNormRNN
from poise.nn.logit_scale import transplant_logit_scale
from poise.nn.path_norm import path_norm
from poise.nn.qk_norm import QKNorm
from poise.nn.scaled_embedding import EmbeddingGradientShrink, ScaledEmbedding
from poise.nn.scaled_residual import ScaledResidual, residual_scales
from poise.nn.sdd_linear import SDDLinear
from poise.nn.stable_resnet_mlp import StableResNetMLP
from poise.nn.unified_norm import ReferenceUnifiedNorm, UnifiedNorm

__all__ = [
    "DiagonalLinear",
    "EmbeddingGradientShrink",
    "EmbeddingLayerNorm",
    "LayerNormGRU",
    "LayerNormGRUCell",
    "LayerNormLSTM",
    "LayerNormLSTMCell",
    "LayerNormRNN",
    "LayerNormRNNCell",
    "QKNorm",
    "ReferenceUnifiedNorm",
    "SDDLinear",
    "ScaledEmbedding",
    "ScaledResidual",
    "StableResNetMLP",
    "UnifiedNorm",
    "balance_ratio",
    "path_norm",
    "residual_scales",
    "transplant_logit_scale",
]
