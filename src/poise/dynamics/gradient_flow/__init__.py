"""Gradient flow from the present weights, and the sharpness of its solution."""
