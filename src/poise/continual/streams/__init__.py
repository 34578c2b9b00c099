"""Streams of tasks: what a model meets, one part after the other."""
