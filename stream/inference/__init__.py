"""The inference process: windows from worker messages, scheduling, and predictions."""
