"""The dashboard page: one more subscriber, in its own process."""
