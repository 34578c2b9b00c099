"""Models that are a sum of blocks of inputs, and how much a shift of each block costs them."""
