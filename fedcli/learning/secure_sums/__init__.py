"""Aggregators that get secure sums of the updates, never single updates."""
