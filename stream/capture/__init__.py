"""The capture process: runs one modality and publishes its rows."""
