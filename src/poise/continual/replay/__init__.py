"""Old data that is kept in memory and trained on again."""
