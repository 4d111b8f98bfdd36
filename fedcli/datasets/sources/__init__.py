"""The sources of client data: files, tables, generated images."""
