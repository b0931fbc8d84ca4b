"""Several hosts on one machine: network namespaces, joined by a link with delay and loss.

Each host is a namespace with one TUN device. Its packets go through this process, which delays or drops them: so it
works without the kernel's `netem`. Needs root, iproute2 and /dev/net/tun.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import ipaddress
import os
import random
import select
import shutil
import struct
import subprocess
import threading
import time
from pathlib import Path

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_CLONE_NEWNET = 0x40000000


def lacking() -> str | None:
    """Why there can be no hosts here; None if there can."""
    if shutil.which("ip") is None:
        return "ip (Debian: iproute2) is not installed"
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun"
    name = f"mien-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode != 0:
        return f"no network namespaces: {made.stderr.strip()} (they need root)"
    subprocess.run(["ip", "netns", "delete", name], check=False)
    return None


class Network:
    """Hosts and the wire between them.

    Args:
        names: of the hosts. The first is at 10.77.0.1, the next at 10.77.0.2, and so on.
        delay_ms, jitter_ms, loss: of each packet on its way, in each direction.
    """

    def __init__(self, *names: str, delay_ms: float = 0.0, jitter_ms: float = 0.0, loss: float = 0.0) -> None:
        self.address = {name: f"10.77.0.{number}" for number, name in enumerate(names, 1)}
        self.carried = self.lost = 0
        self._delay_s, self._jitter_s, self._loss = delay_ms / 1e3, jitter_ms / 1e3, loss
        self._chance = random.Random(3)
        self._cards: dict[int, int] = {}
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._carry, name="wire", daemon=True)

    def command(self, host: str, *arguments: str) -> list[str]:
        """A command line that runs on a host."""
        return ["ip", "netns", "exec", self._namespace(host), *arguments]

    def __enter__(self) -> Network:
        for host, address in self.address.items():
            _ip("netns", "add", self._namespace(host))
            opened = threading.Thread(target=self._open_card, args=(host, address))
            opened.start()  # a thread alone enters the namespace, and ends there
            opened.join()
            for line in ("link set lo up", f"address add {address}/24 dev wire", "link set wire mtu 1400 up"):
                _ip("-netns", self._namespace(host), *line.split())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.write(self._stopped, b".")
        self._thread.join()
        for descriptor in (*self._cards.values(), self._stop, self._stopped):
            os.close(descriptor)
        for host in self.address:
            _ip("netns", "delete", self._namespace(host))

    @staticmethod
    def _namespace(host: str) -> str:
        return f"mien-{os.getpid()}-{host}"

    def _open_card(self, host: str, address: str) -> None:
        with Path(f"/run/netns/{self._namespace(host)}").open() as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        card = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(card, _TUNSETIFF, struct.pack("16sH22x", b"wire", _IFF_TUN | _IFF_NO_PI))
        self._cards[int(ipaddress.IPv4Address(address))] = card

    def _carry(self) -> None:
        under_way: list[tuple[float, int, int, bytes]] = []
        latest: dict[tuple[int, int], float] = {}
        number = 0
        while True:
            wait_s = max(under_way[0][0] - time.monotonic(), 0.0) if under_way else None
            readable, _, _ = select.select([*self._cards.values(), self._stop], [], [], wait_s)
            if self._stop in readable:
                return
            now_s = time.monotonic()
            for card in readable:
                packet = os.read(card, 2048)
                target = int.from_bytes(packet[16:20]) if packet[0] >> 4 == 4 else 0
                if target not in self._cards:
                    continue
                if self._chance.random() < self._loss:
                    self.lost += 1
                    continue
                due_s = now_s + self._delay_s + self._chance.uniform(-self._jitter_s, self._jitter_s)
                # One after the other on each way, as on a wire.
                due_s = latest[card, target] = max(due_s, latest.get((card, target), 0.0))
                number += 1
                heapq.heappush(under_way, (due_s, number, target, packet))
            while under_way and under_way[0][0] <= now_s:
                _, _, target, packet = heapq.heappop(under_way)
                os.write(self._cards[target], packet)
                self.carried += 1


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
