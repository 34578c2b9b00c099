"""Small helpers that several rooms need, one a file; this room imports none of the others."""
