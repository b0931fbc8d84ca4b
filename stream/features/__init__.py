"""The extractors' output as tables with named columns."""
