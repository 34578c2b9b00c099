"""Policy optimisation over linear models that are estimated around the present trajectory from perturbed roll-outs."""
