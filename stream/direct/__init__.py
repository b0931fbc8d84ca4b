"""Recognition in the caller's own process: the stream's extractors, windows and model, without sockets or processes."""
