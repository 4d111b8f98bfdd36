"""Aggregators that get secure sums of the updates, never individual updates."""
