"""Diffusion and flow models: paths, trajectories along them, and the likelihood they give."""
