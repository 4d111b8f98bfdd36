"""Differential privacy: how much a run has spent, and which mechanism fits which sampling."""
