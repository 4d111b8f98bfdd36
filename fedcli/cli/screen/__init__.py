"""The output of commands: tables, pictures, curves, JSON."""
