"""Runs: opening data and model, the training loop, saving, resuming and evaluation."""
