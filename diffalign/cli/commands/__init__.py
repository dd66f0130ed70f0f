"""The commands, a file each: CONFIG (its flags, as a dataclass), ABOUT (a line for the overview), HELP (below the flags), and `run`."""
