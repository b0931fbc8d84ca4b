"""Capture workers, the ZeroMQ bus, window assembly, the inference process, subscribers."""
