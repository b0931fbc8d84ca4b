"""Session recordings: writing, replay, comparison, export, report, labels."""
