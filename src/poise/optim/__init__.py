"""Optimizers, schedules and parameter groups that keep training stable."""

from typing import TYPE_CHECKING

from poise.tools.lazy_front import lazy_front

if TYPE_CHECKING:
    from poise.optim.adamp import AdamP
    from poise.optim.checkpoint import open_checkpoint, save_checkpoint
    from poise.optim.decay_groups import decay_groups, param_groups
    from poise.optim.ema import EMA
    from poise.optim.equivalent_hyperparameters import (
        Hyperparameters,
        equilibrium_norm,
        equivalent_hyperparameters,
    )
    from poise.optim.freeze_rows import FrozenRows, freeze_rows
    from poise.optim.fuse import FuseInfo, fuse
    from poise.optim.gradient_projection import AGEM, GEM, project_agem, project_gem
    from poise.optim.homeostatic_lr import HomeostaticLR
    from poise.optim.independent_adamw import IndependentAdamW
    from poise.optim.loss_barrier import LossBarrier, loss_barrier
    from poise.optim.match_effective_lr import MatchEffectiveLR, group_effective_lr, weight_norm
    from poise.optim.model_averager import ModelAverager
    from poise.optim.mu_param import mu_param_groups
    from poise.optim.normalize_weights import NormalizeWeights
    from poise.optim.one_cycle import OneCycle, OneCycleAsRun
    from poise.optim.ortho_grad import OrthoGrad
    from poise.optim.sam import SAM, choose_rho
    from poise.optim.scale_invariance import scale_invariant_parameters
    from poise.optim.sgdp import SGDP
    from poise.optim.soap import SOAP
    from poise.optim.two_phase_lr import TwoPhaseLR
    from poise.optim.warmup import CurvatureWarmup, WarmupCosineLR
    from poise.optim.wrapper import OptimizerWrapper

__all__ = [
    "AGEM",
    "EMA",
    "GEM",
    "SAM",
    "SGDP",
    "SOAP",
    "AdamP",
    "CurvatureWarmup",
    "FrozenRows",
    "FuseInfo",
    "HomeostaticLR",
    "Hyperparameters",
    "IndependentAdamW",
    "LossBarrier",
    "MatchEffectiveLR",
    "ModelAverager",
    "NormalizeWeights",
    "OneCycle",
    "OneCycleAsRun",
    "OptimizerWrapper",
    "OrthoGrad",
    "TwoPhaseLR",
    "WarmupCosineLR",
    "choose_rho",
    "decay_groups",
    "equilibrium_norm",
    "equivalent_hyperparameters",
    "freeze_rows",
    "fuse",
    "group_effective_lr",
    "loss_barrier",
    "mu_param_groups",
    "open_checkpoint",
    "param_groups",
    "project_agem",
    "project_gem",
    "save_checkpoint",
    "scale_invariant_parameters",
    "weight_norm",
]

lazy_front(__name__)
