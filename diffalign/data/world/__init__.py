"""The embedded world: one antialiased shape on a plain background, with captions, an exact judge, tastes and users."""
