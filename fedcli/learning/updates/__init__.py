"""The stages that change clients' updates between training and aggregation."""
