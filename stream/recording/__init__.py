"""A session in a file, and what can be done with it: replay, comparison, export, report, labels."""
