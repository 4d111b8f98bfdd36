"""Inspecting clients: label counts, mean images, heterogeneity, and suspicious examples."""
