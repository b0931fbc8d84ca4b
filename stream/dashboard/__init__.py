"""The page that people look at: one more subscriber, in a process of its own."""
