"""Changes of a model for an update: its head, the layers below it, and what may move."""
