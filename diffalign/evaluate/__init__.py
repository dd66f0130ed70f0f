"""Comparing models on held-out prompts, with intervals."""
