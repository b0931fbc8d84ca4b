"""Speech processing: streaming recognition, voice activity, pitch, and voice encoder states."""
