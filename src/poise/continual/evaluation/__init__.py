"""What a model can do after every update, and the metrics of it."""
