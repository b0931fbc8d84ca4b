"""One file per modality: its row format, and how rows are extracted from audio or video."""
