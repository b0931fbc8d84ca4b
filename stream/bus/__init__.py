"""The bus: sockets and the bytes on them, who may connect, and what time it is at the other end."""
