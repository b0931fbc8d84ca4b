"""One compiled form of a network per file, behind one small protocol."""
