"""The binding of the C core, and the random streams it draws."""
