"""What the extractors saw and heard, as tables with named columns."""
