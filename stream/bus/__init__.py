"""The bus: sockets, message formats, access control, and clock synchronisation."""
