"""Maps and flows: fixed points, their stability, Lyapunov exponents."""
