"""Preference data, of images and texts alike: readers make records, a table keeps them, transforms and a view turn them into batches."""
