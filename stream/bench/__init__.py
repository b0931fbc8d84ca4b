"""Measuring the stream: paced and synthetic sources, rates, latency and what machine it was."""
