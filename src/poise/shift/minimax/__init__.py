"""Which stable inputs to keep where some mechanisms change: worst-case risk over environments."""
