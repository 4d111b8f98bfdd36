"""What commands print: tables, pictures, curves, JSON."""
