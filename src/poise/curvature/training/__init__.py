"""Curvature followed along a training run."""
