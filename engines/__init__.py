"""Inference engines: one backend per file, behind one small protocol."""
