"""Sessions of many cameras on many machines: Ray decides what runs where, ZeroMQ carries the data."""
