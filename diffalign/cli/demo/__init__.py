"""The whole loop on the embedded models, for `diffalign quickstart`."""
