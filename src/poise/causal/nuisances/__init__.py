"""Nuisances: what an effect estimate needs beside the effect, predicted for rows by learners that never saw them."""
