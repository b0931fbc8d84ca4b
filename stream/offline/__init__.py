"""The stream's extractors and model on files: extraction, labels, predictions over clips, and the training pipeline."""
