"""The capture process: one modality run, and what it publishes."""
