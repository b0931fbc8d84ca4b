"""How the page is found: its address and QR code."""

from __future__ import annotations

import ipaddress
import socket

import cv2
import numpy as np
import pytest

from mien.stream.dashboard.launch import qr_code

pytest.importorskip("segno", reason="needs the dashboard's packages")


def test_address_for_a_phone_is_reachable() -> None:
    """An address of this machine instead of a local name, also in the QR code."""
    server = pytest.importorskip("mien.stream.dashboard.server")
    place = server.take_place("0.0.0.0", 0, "a-token", "")
    place.socket.close()
    host = place.url.split("/")[2].rpartition(":")[0]
    assert host == socket.gethostname() or ipaddress.ip_address(host).version == 4
    assert host not in ("0.0.0.0", "")

    lines = qr_code(place.url).splitlines()
    halves = {"█": (1, 1), "▀": (1, 0), "▄": (0, 1), " ": (0, 0)}
    modules = np.array([[halves[c][half] for c in line.ljust(len(lines[0]))] for line in lines for half in (0, 1)])
    image = np.kron(modules, np.ones((8, 8))).astype(np.uint8) * 255
    assert cv2.QRCodeDetector().detectAndDecode(image)[0] == place.url
