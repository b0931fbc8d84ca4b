"""Feature tables."""
