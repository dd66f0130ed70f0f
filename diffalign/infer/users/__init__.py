"""Pictures for one person."""
