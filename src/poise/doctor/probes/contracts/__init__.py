"""Probes that compare what a function is given with what it wants, and write down as events what does not fit."""
