"""Sweeps over learning rates, sizes and seeds, and what their curves say."""
