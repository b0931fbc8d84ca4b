"""Detecting a local screen, and opening a browser on it."""

from __future__ import annotations

import os
import sys
import webbrowser


def has_screen() -> bool:
    """Whether windows can be shown."""
    return sys.platform in ("win32", "darwin") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def open_browser(url: str) -> bool:
    """Open a page if there is a graphical browser; a text browser would take over the terminal."""
    if not has_screen() or os.environ.get("SSH_CONNECTION"):
        return False
    try:
        return webbrowser.open(url)
    except (webbrowser.Error, OSError):
        return False
