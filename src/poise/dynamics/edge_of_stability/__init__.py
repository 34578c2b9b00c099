"""The edge of stability: the largest curvature at which an optimizer is stable."""
