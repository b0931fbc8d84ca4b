"""The screen of this machine: whether there is one, and a browser on it."""

from __future__ import annotations

import os
import sys
import webbrowser


def has_screen() -> bool:
    """Whether there is a screen for windows."""
    return sys.platform in ("win32", "darwin") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def open_browser(url: str) -> bool:
    """Open a page where there is a browser with a screen; one that runs in the terminal would take it away."""
    if not has_screen() or os.environ.get("SSH_CONNECTION"):
        return False
    try:
        return webbrowser.open(url)
    except (webbrowser.Error, OSError):
        return False
