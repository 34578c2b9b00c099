"""Riccati equations and the gains that they give."""
