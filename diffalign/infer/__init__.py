"""Using what was trained: pictures, and pipelines with a result applied. Imports nothing of training."""
