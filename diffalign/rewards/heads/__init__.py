"""Reward models trained on preferences: heads on frozen embeddings of images and prompts."""
