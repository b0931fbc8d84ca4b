"""Training of CM-MSF and of its encoders."""
