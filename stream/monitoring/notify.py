"""Tells systemd that the session is ready, alive, or about to end (sd_notify(3)). Without systemd, nothing happens."""

from __future__ import annotations

import contextlib
import os
import socket
import time

_INTERVAL_S = 1.0


class ServiceManager:
    """The other end of NOTIFY_SOCKET, if there is one."""

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        self._alive_s = 0.0

    def ready(self) -> None:
        """Everything runs."""
        self._send("READY=1")

    def alive(self, state: str) -> None:
        """Call it often; it is sent once a second, with one line on how things are."""
        now_s = time.monotonic()
        if now_s - self._alive_s >= _INTERVAL_S:
            self._alive_s = now_s
            self._send(f"WATCHDOG=1\nSTATUS={state}")

    def stopping(self) -> None:
        """We are about to end."""
        self._send("STOPPING=1")

    def _send(self, text: str) -> None:
        if not self._address or not hasattr(socket, "AF_UNIX"):
            return
        # A name that begins with @ is an abstract one.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(text.encode(), address)
