"""Scorers of images: reward models in this stack's own classes, the embedded world's judges, and a user's own functions."""
