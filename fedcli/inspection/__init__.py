"""Who the clients are."""
