"""Optimizers, schedules and parameter groups that keep training stable."""

from poise.optim.checkpoint import open_checkpoint, save_checkpoint
from poise.optim.decay_groups import decay_groups, param_groups
from poise.optim.ema import EMA
from poise.optim.fuse import FuseInfo, fuse
from poise.optim.independent_adamw import IndependentAdamW
from poise.optim.loss_barrier import LossBarrier, loss_barrier
from poise.optim.match_effective_lr import MatchEffectiveLR, weight_norm
from poise.optim.model_averager import ModelAverager
from poise.optim.mu_param import mu_param_groups
from poise.optim.one_cycle import OneCycle, OneCycleAsRun
from poise.optim.soap import SOAP
from poise.optim.two_phase_lr import TwoPhaseLR
from poise.optim.warmup import CurvatureWarmup, WarmupCosineLR

__all__ = [
    "EMA",
    "SOAP",
    "CurvatureWarmup",
    "FuseInfo",
    "IndependentAdamW",
    "LossBarrier",
    "MatchEffectiveLR",
    "ModelAverager",
    "OneCycle",
    "OneCycleAsRun",
    "TwoPhaseLR",
    "WarmupCosineLR",
    "decay_groups",
    "fuse",
    "loss_barrier",
    "mu_param_groups",
    "open_checkpoint",
    "param_groups",
    "save_checkpoint",
    "weight_norm",
]
