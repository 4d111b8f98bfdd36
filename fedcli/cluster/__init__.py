"""Training one run on several machines, with the bytes of one thread."""
