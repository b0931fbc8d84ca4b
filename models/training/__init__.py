"""Training of CM-MSF and its encoders."""
