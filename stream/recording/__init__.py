"""Sessions kept in MCAP files: recorded by a subscriber, replayed through the same sockets, exported, reported."""
