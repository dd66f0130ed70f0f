"""Results as files that other programs load."""
