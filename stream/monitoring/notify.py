"""Tells systemd that the session is ready, alive, or stopping (sd_notify(3)). A no-op without systemd."""

from __future__ import annotations

import contextlib
import os
import socket
import time

_INTERVAL_S = 1.0


class ServiceManager:
    """The service manager at NOTIFY_SOCKET, if there is one."""

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        self._alive_s = 0.0

    def ready(self) -> None:
        self._send("READY=1")

    def alive(self, state: str) -> None:
        """Watchdog heartbeat; call it often, it is sent once a second, with a one-line state."""
        now_s = time.monotonic()
        if now_s - self._alive_s >= _INTERVAL_S:
            self._alive_s = now_s
            self._send(f"WATCHDOG=1\nSTATUS={state}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def _send(self, text: str) -> None:
        if not self._address or not hasattr(socket, "AF_UNIX"):
            return
        # A leading @ denotes an abstract socket.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(text.encode(), address)
