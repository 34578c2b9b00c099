"""How signals and gradients grow from layer to layer at initialisation."""
