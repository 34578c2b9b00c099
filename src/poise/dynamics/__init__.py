"""Maps, flows and optimizers as dynamical systems: fixed points, what they attract, and where stability ends."""

__all__: list[str] = []
