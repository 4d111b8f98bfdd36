"""Fetching, checking and unpacking public datasets."""
