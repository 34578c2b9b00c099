"""What a closed loop attracts, by sampling."""
