"""Overhead of each bridge: synthetic predictions at a camera's pace, received directly and through the bridge."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mien.clock import Clock
from mien.config import BusConfig
from mien.errors import BusError
from mien.stream.bench.measurement import describe
from mien.stream.bench.synthetic import synthetic_prediction
from mien.stream.bus.clock_exchange import answer_question
from mien.stream.bus.ports import free_port
from mien.stream.bus.sockets import Publisher, Receiver
from mien.stream.bus.wire import decode_prediction, encode_prediction
from mien.stream.processes.child import wait_or_kill

KINDS = ("ws", "osc", "lsl", "mqtt")
_SESSION = "bench"
_STEP = 1 / 1024  # sentiments encode a prediction's number: OSC and LSL carry no other, and float32 holds these exactly
_CYCLE = 2048
_RATE_HZ = 30.0  # of predictions
_READY_S = 30.0
Arrivals = dict[int, int]  # number of a prediction -> when it arrived, ns of the monotonic clock


def measure_bridges(seconds: float) -> dict[str, Any]:
    """Latency that each bridge adds to that of a direct subscriber, in ms, per prediction.

    Args:
        seconds: for each bridge, one after the other. One whose library or broker is missing is skipped with a message.
    """
    results: dict[str, Any] = {}
    for kind in KINDS:
        try:
            results[kind] = _measure(kind, seconds)
        except (ImportError, BusError) as error:
            results[kind] = {"skipped": str(error)}
    return {"rate_hz": _RATE_HZ, "bridges": results}


def _measure(kind: str, seconds: float) -> dict[str, Any]:
    clock, stopping = Clock(), threading.Event()
    publisher = Publisher(f"tcp://127.0.0.1:{free_port()}", BusConfig())
    publisher.on_clock_request = lambda question: answer_question(question, 1, clock)
    direct: Arrivals = {}
    bridged: Arrivals = {}
    with contextlib.ExitStack() as stack:
        stack.callback(publisher.close)
        reader = threading.Thread(target=_read_bus, args=(publisher.endpoint, direct, stopping))
        options, receive = stack.enter_context(_PEERS[kind](bridged, stopping))
        process = subprocess.Popen(
            [sys.executable, "-m", "mien", "bridge", kind, publisher.endpoint, *options],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        stack.callback(_end, process)
        peer = threading.Thread(target=receive)
        stack.callback(stopping.set)
        for thread in (reader, peer):
            thread.start()
            stack.callback(thread.join, 10.0)
        until_s, number, due_s, begun = time.monotonic() + _READY_S, 0, time.monotonic(), None
        while begun is None or number < begun + seconds * _RATE_HZ:
            if begun is None and bridged:
                begun = number
            if begun is None and time.monotonic() > until_s:
                raise BusError(f"nothing was received through the bridge {kind}; see mien bridge {kind}")
            prediction = synthetic_prediction(_SESSION, number, clock.now_ns(), number % _CYCLE * _STEP)
            publisher.send(encode_prediction(prediction))
            number, due_s = number + 1, due_s + 1 / _RATE_HZ
            while (left_s := due_s - time.monotonic()) > 0:
                publisher.service()
                time.sleep(min(left_s, 0.001))
        time.sleep(0.3)
        stopping.set()
        process.terminate()
    both = [n for n in bridged if n in direct and n >= (begun or 0) % _CYCLE]
    added_ms = [(bridged[n] - direct[n]) / 1e6 for n in both]
    return {"predictions": len(both), "added_ms": describe(added_ms)}


def _note(arrivals: Arrivals, sentiment: float) -> None:
    arrivals.setdefault(round(sentiment / _STEP), time.monotonic_ns())


def _read_bus(endpoint: str, arrivals: Arrivals, stopping: threading.Event) -> None:
    receiver = Receiver(endpoint, (b"prediction/",))
    while not stopping.is_set():
        receiver.socket.poll(50)
        for frames in receiver.drain():
            _note(arrivals, decode_prediction(frames).sentiment or 0.0)
    receiver.close()


Peer = tuple[list[str], Callable[[], None]]  # options of the bridge, and what receives behind it


@contextlib.contextmanager
def _web(arrivals: Arrivals, stopping: threading.Event) -> Iterator[Peer]:
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import connect
    from websockets.typing import Origin

    port = free_port()

    def receive() -> None:
        while not stopping.is_set():
            # Nobody listens yet, or the bridge has ended.
            with (
                contextlib.suppress(OSError, ConnectionClosed),
                connect(f"ws://127.0.0.1:{port}/ws", origin=Origin(f"http://127.0.0.1:{port}")) as client,
            ):
                while not stopping.is_set():
                    with contextlib.suppress(TimeoutError):
                        event = json.loads(client.recv(0.1))
                        if event["type"] == "prediction":
                            _note(arrivals, event["sentiment"])
            time.sleep(0.1)

    yield ["--port", str(port)], receive


@contextlib.contextmanager
def _osc(arrivals: Arrivals, stopping: threading.Event) -> Iterator[Peer]:
    from pythonosc.osc_bundle import OscBundle

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(0.1)

        def receive() -> None:
            while not stopping.is_set():
                with contextlib.suppress(TimeoutError):
                    for message in OscBundle(receiver.recv(65536)):
                        if message.address == f"/mien/{_SESSION}/sentiment":
                            _note(arrivals, message.params[0])

        yield ["--to", f"127.0.0.1:{receiver.getsockname()[1]}"], receive


@contextlib.contextmanager
def _lsl(arrivals: Arrivals, stopping: threading.Event) -> Iterator[Peer]:
    import pylsl

    def receive() -> None:
        streams: list[Any] = []
        while not streams and not stopping.is_set():
            streams = pylsl.resolve_byprop("source_id", f"mien-prediction-{_SESSION}", 1, 1.0)
        if streams:
            inlet = pylsl.StreamInlet(streams[0])
            while not stopping.is_set():
                values, _ = inlet.pull_sample(0.1)
                if values and not math.isnan(values[0]):
                    _note(arrivals, values[0])

    yield [], receive


@contextlib.contextmanager
def _mqtt(arrivals: Arrivals, stopping: threading.Event) -> Iterator[Peer]:
    import paho.mqtt.client as paho
    from paho.mqtt.enums import CallbackAPIVersion

    mosquitto = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
    if mosquitto is None:
        raise BusError("needs a Mosquitto broker on this machine")
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "mosquitto.conf"
        config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\n", encoding="utf-8")
        broker = subprocess.Popen([mosquitto, "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        client = paho.Client(CallbackAPIVersion.VERSION2)

        def subscribe(*_: Any) -> None:
            client.subscribe(f"mien/{_SESSION}/prediction")

        def receive() -> None:
            client.on_message = lambda _client, _data, message: _note(
                arrivals, json.loads(message.payload)["sentiment"]
            )
            client.on_connect = subscribe
            client.connect_async("127.0.0.1", port)
            client.loop_start()
            stopping.wait()
            client.disconnect()
            client.loop_stop()

        try:
            yield ["--broker", f"127.0.0.1:{port}", "--rate-hz", "1000", "--discovery", ""], receive
        finally:
            _end(broker)


_PEERS: dict[str, Callable[[Arrivals, threading.Event], Any]] = {"ws": _web, "osc": _osc, "lsl": _lsl, "mqtt": _mqtt}


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    wait_or_kill(process, 10)
