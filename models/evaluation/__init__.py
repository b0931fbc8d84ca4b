"""Metrics, and protocols for evaluating a model on labelled samples."""
