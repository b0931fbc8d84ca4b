"""The processes of a session: planning, starting, supervising."""
