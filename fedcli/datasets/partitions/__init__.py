"""Partitions: how the examples of a dataset are dealt to clients."""
