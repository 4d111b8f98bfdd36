"""Runs the long work of commands: worker threads, signals, progress bars."""
