"""What becomes of the clients' updates between training and aggregation."""
