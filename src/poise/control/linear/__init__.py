"""Linear loops: their margins, and how far one parameter can go."""
