"""How well a deployed classifier does on rows without labels, and in which chunks."""
