"""What client data are read from: files, tables, generated images."""
