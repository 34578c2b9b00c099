"""A sweep over the learning rates of an unmodified script."""
