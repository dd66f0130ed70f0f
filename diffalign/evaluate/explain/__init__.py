"""What votes reward: the differences that carry them, by user and by source, what contradicts itself, and which votes look wrong."""
