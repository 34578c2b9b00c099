"""Tracking by a Riccati equation solved anew at every step, on known and on learned factorisations."""
