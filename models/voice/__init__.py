"""The voice: what a row of sound holds, the encoder that hears it, and what it is compared with."""
