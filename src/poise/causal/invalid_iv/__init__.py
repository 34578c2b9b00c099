"""Average effects with one instrument that may affect the outcome directly, and the choice between learners."""
