"""Layers that keep training stable."""

from typing import TYPE_CHECKING

from poise.tools.lazy_front import lazy_front

if TYPE_CHECKING:
    from poise.nn.add_qk_norm import add_qk_norm
    from poise.nn.apply_sdd import apply_sdd
    from poise.nn.balance_ratio import balance_ratio
    from poise.nn.diagonal_linear import DiagonalLinear
    from poise.nn.embedding_layer_norm import EmbeddingLayerNorm
    from poise.nn.fixup import fixup_
    from poise.nn.fuse_norms import fuse_norms
    from poise.nn.gradinit import gradinit_adam_, gradinit_sgd_
    from poise.nn.layer_norm_cells import LayerNormGRUCell, LayerNormLSTMCell, LayerNormRNNCell
    from poise.nn.layer_norm_recurrent import LayerNormGRU, LayerNormLSTM, LayerNormRNN
    from poise.nn.logit_scale import transplant_logit_scale
    from poise.nn.metainit import gaussian_batches, gradient_quotient, metainit_
    from poise.nn.path_norm import log_path_norm, path_norm
    from poise.nn.qk_norm import QKNorm
    from poise.nn.replace_norm import replace_norm
    from poise.nn.scale_embedding import scale_embedding
    from poise.nn.scaled_embedding import EmbeddingGradientShrink, ScaledEmbedding
    from poise.nn.scaled_loss import ScalingReport
    from poise.nn.scaled_residual import ScaledResidual, residual_scales
    from poise.nn.sdd_linear import SDDLinear
    from poise.nn.spike_free import small_init_std, spike_free_
    from poise.nn.stabilize_residuals import stabilize_residuals
    from poise.nn.stable_resnet_mlp import StableResNetMLP
    from poise.nn.surgery import Surgery
    from poise.nn.swap_recurrent import swap_recurrent
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
    "ScalingReport",
    "StableResNetMLP",
    "Surgery",
    "UnifiedNorm",
    "add_qk_norm",
    "apply_sdd",
    "balance_ratio",
    "fixup_",
    "fuse_norms",
    "gaussian_batches",
    "gradient_quotient",
    "gradinit_adam_",
    "gradinit_sgd_",
    "log_path_norm",
    "metainit_",
    "path_norm",
    "replace_norm",
    "residual_scales",
    "scale_embedding",
    "small_init_std",
    "spike_free_",
    "stabilize_residuals",
    "swap_recurrent",
    "transplant_logit_scale",
]

lazy_front(__name__)
