"""Converts a source of any format to a fedcli store."""
