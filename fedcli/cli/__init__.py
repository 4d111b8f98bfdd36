"""The commands: options in, one call of the library, results printed."""
