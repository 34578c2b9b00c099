"""Optimizers, schedules and parameter groups that keep training stable."""

from poise.optim.independent_adamw import IndependentAdamW
from poise.optim.mu_param import mu_param_groups

__all__ = ["IndependentAdamW", "mu_param_groups"]
