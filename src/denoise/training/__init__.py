"""One training loop for every mode."""
