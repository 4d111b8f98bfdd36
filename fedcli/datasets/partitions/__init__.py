"""Partitions: how the examples of a dataset are assigned to clients."""
