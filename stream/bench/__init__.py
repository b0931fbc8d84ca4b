"""Benchmarks of the stream: paced and synthetic sources, rates, latency, and a description of the machine."""
