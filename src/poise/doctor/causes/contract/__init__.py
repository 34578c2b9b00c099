"""Contracts between tensors, losses, modules and optimizers that a script breaks: facts, known from the first steps."""
