"""The text encoder: words to vectors."""
