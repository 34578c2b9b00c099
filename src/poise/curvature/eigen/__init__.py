"""Eigenvalues and norms of linear operators, with error bounds."""
