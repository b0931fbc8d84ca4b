"""At run time no packet leaves the machine: the demo in a network namespace whose only way out counts packets."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from tests.e2e.conftest import command
from tests.needs import need_assets, run_program

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.assets]

# A network device that counts and drops everything sent to addresses other than loopback, name servers included.
_OUTSIDE = """
set -e
ip link set lo up
ip link add outside type veth peer name void
for card in outside void; do
    if [ -d /proc/sys/net/ipv6 ]; then echo 1 >/proc/sys/net/ipv6/conf/$card/disable_ipv6; fi
done
ip link set void up
ip address add 192.0.2.1/24 dev outside
ip link set outside up
ip route add default via 192.0.2.254 dev outside
"$@"
ip -json -statistics link show dev outside >&2
"""


def run_apart(*arguments: str) -> tuple[str, int]:
    """Standard output of a command in a namespace of its own, and how many packets tried to leave it."""
    ran = run_program(["unshare", "--net", "sh", "-c", _OUTSIDE, "sh", *arguments], 240)
    assert ran.returncode == 0, ran.stderr
    [card] = json.loads(ran.stderr.splitlines()[-1])
    return ran.stdout, int(card["stats64"]["tx"]["packets"])


@pytest.fixture(autouse=True)
def _namespaces() -> None:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("unshare and ip (Debian: util-linux, iproute2) are not installed")
    made = subprocess.run(["unshare", "--net", "ip", "link", "add", "outside", "type", "veth"], capture_output=True)
    if made.returncode != 0:
        pytest.skip(f"no network namespaces here: {made.stderr.decode().strip()} (they need root)")


def test_outgoing_packet_is_counted() -> None:
    """Otherwise the test below could not fail."""
    code = "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'out', ('198.51.100.7', 53))"
    assert run_apart(sys.executable, "-c", code)[1] >= 1


@pytest.mark.timeout(400)
def test_demo_sends_nothing_out() -> None:
    need_assets()
    demo = command("demo", "--sample", "--headless", "--json", "--seconds", "12")
    out, packets = run_apart(*demo)
    predictions = [json.loads(line) for line in out.splitlines()]
    assert len(predictions) > 20
    assert any(prediction["words"] for prediction in predictions), "the recogniser was at work too"
    assert packets == 0
