"""Stochastic estimates of traces, Frobenius norms and spectral densities."""
