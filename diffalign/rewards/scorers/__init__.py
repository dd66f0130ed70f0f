"""Scorers by name."""
