"""The processes of a session: planned, started, watched, told what to do."""
