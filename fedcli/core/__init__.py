"""The Python binding of the C core, and its random streams."""
