"""The inference process: messages of the workers in, windows, decisions, predictions out."""
