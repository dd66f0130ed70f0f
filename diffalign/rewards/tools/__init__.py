"""Rewards from counting, detecting and reading: what a prompt asks for, what tools find in a picture, and whether the two agree."""
