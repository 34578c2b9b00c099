"""The largest learning rate that the curvature at the present weights allows."""
