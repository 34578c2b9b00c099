"""Small models of training whose dynamics are known."""
