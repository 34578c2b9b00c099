"""Representations of covariates for estimates of effects in small samples."""
