"""Recognition in the caller's own process."""
