"""What sampling batches adds: the stability of stochastic gradient descent."""
