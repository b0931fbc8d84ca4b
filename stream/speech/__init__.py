"""Hearing words and voices: recognition in short windows, agreement on words, voice activity, pitch."""
