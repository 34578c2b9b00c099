"""The Hessian, and the five ways to compute its product with a vector."""
