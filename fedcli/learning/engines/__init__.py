"""Engines, which train and evaluate the clients of a cohort."""
