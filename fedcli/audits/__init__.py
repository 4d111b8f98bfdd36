"""Attacks on the privacy of a finished run, made by whoever owns its data, to see what leaks."""
