"""TODO: one line that says what this room is for."""
