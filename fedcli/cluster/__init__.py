"""Training one run on several machines, with the same bytes as on one thread."""
