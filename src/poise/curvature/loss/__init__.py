"""The loss of a model as a function of one flat parameter vector: batches, criteria, evaluation, differentiation."""
