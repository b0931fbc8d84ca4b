"""Recognition in-process: the stream's extractors, windows and model, without sockets or further processes."""
