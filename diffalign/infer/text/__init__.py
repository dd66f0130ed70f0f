"""Using a trained language model."""
