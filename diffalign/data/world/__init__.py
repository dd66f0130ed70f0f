"""The embedded world: images of one shape on a plain background, with captions, an exact judge, and simulated tastes and users."""
