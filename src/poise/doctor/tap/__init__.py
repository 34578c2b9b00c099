"""Where numbers leave a live run without the script being changed."""
