"""Runs told to people: tables, pages, plots, comparisons."""
