"""The commands. Each parses options, calls the library and prints the results."""
