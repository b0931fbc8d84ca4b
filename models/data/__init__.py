"""Labelled corpora and datasets of rows, as training and evaluation read them."""
