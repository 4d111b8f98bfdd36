"""Readers of the formats that others keep images in, one file a format."""
