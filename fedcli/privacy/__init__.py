"""Differential privacy: the epsilon that a run has spent, by mechanism and sampling."""
