"""Optimizers, schedules and parameter groups that keep training stable."""

from poise.optim.decay_groups import decay_groups, param_groups
from poise.optim.independent_adamw import IndependentAdamW
from poise.optim.match_effective_lr import MatchEffectiveLR, weight_norm
from poise.optim.mu_param import mu_param_groups
from poise.optim.one_cycle import OneCycle, OneCycleAsRun
from poise.optim.two_phase_lr import TwoPhaseLR
from poise.optim.warmup import CurvatureWarmup, WarmupCosineLR

__all__ = [
    "CurvatureWarmup",
    "IndependentAdamW",
    "MatchEffectiveLR",
    "OneCycle",
    "OneCycleAsRun",
    "TwoPhaseLR",
    "WarmupCosineLR",
    "decay_groups",
    "mu_param_groups",
    "param_groups",
    "weight_norm",
]
