"""Model families behind one interface. Importing this package loads no model library."""
