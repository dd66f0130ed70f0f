"""What all rooms share: errors, types, files, finished runs."""
