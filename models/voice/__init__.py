"""The voice: columns of an audio row, the encoder, and references to compare rows with."""
