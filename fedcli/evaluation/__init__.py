"""What a model is worth to the clients."""
