"""Evaluation of models on clients: metrics, spread over clients, fine-tuning, predictions."""
