"""Small helpers that several rooms need, one a file."""
