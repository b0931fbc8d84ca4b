"""The voice: columns of an audio row, the encoder of its states, and references to compare it with."""
