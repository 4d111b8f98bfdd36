"""Reading and writing Keras's model and weights files."""
