"""Sweeps over learning rates, sizes and seeds, and their curves."""
