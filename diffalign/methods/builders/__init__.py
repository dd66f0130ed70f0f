"""From a config to the parts that a trainer runs."""
