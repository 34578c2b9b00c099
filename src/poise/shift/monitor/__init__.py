"""A monitor of a deployed classifier: fitted once, kept in a folder, run over new files as they come."""
