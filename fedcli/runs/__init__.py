"""A run: opening its parts, its rounds, its end, its evaluation."""
