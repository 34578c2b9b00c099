"""Spectra of a loss: curvature operators that never form a matrix, eigenvalues with error bounds, traces, densities."""

__all__: list[str] = []
