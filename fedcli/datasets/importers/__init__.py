"""Importers of foreign image formats, one module for each format."""
