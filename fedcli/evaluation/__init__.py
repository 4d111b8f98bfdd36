"""How well a model serves the clients: metrics, fairness, fine-tuning, predictions."""
