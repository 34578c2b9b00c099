"""Curvature matrices as linear operators that never form a matrix."""
