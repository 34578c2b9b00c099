"""Learners of effects that vary with covariates."""
