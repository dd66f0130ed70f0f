"""Texts: tokens, layouts, and the likelihood of a language model."""
