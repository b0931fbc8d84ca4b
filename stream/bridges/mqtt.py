"""MQTT, for home automation and brokers: JSON and single values under a prefix.

    PREFIX/bridge                     "online" or "offline" (last will), retained
    PREFIX/SESSION/prediction         the prediction as in `mien watch --json`, retained
    PREFIX/SESSION/sentiment, confidence, emotion, transcript      single values, retained
    PREFIX/SESSION/status/WORKER      state of a process, retained

With discovery, Home Assistant finds sentiment, emotion and confidence of each session automatically.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import socket
import ssl
from collections import deque
from dataclasses import dataclass

import aiomqtt
import msgspec

import mien
from mien.errors import ConfigError
from mien.messages import Prediction, Status
from mien.stream.bridges.feed import Counts, Event

log = logging.getLogger(__name__)

_QUEUE = 64  # messages queued for the broker; the oldest is dropped
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_STATE_CLASSES = {"sentiment": "measurement", "confidence": "measurement", "emotion": None}


@dataclass(frozen=True)
class Broker:
    """Where to publish, and how.

    Raises:
        ConfigError: a prefix is not one of topics.

    Attributes:
        prefix: of all topics. qos: 0, 1 or 2. tls: encrypt and check the broker's certificate.
        discovery: prefix of Home Assistant's discovery topics; empty for none.
    """

    host: str = "127.0.0.1"
    port: int = 1883
    username: str | None = None
    password: str | None = None
    tls: bool = False
    prefix: str = "mien"
    qos: int = 0
    discovery: str = "homeassistant"

    def __post_init__(self) -> None:
        for option, prefix in (("--prefix", self.prefix), ("--discovery", self.discovery)):
            if {"#", "+", "\0"} & set(prefix) or not (prefix or option == "--discovery"):
                raise ConfigError(f"{option} {prefix!r} cannot begin a topic; use names and slashes, without # and +")


class MqttOutlet:
    """Publishes to a broker, and reconnects when it is lost; for the event loop that runs `serve`."""

    def __init__(self, broker: Broker, counts: Counts) -> None:
        self._broker = broker
        self._counts = counts
        self._waiting: deque[tuple[str, str | bytes]] = deque()
        self._retained: dict[str, str | bytes] = {}  # to be repeated after the broker restarts
        self._announced: set[str] = set()
        self._loop = asyncio.get_running_loop()
        self._more = asyncio.Event()

    def send(self, event: Event) -> None:
        """Queue an event's messages. Called from the thread that reads the bus."""
        messages = self._messages(event)
        # The loop is closing.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._queue, messages, isinstance(event, Status))

    async def serve(self) -> None:
        """Connect, publish, and reconnect with exponential backoff, until cancelled."""
        pause_s, failed = _FIRST_PAUSE_S, False
        broker = self._broker
        availability = f"{broker.prefix}/bridge"
        while True:
            try:
                async with aiomqtt.Client(
                    broker.host,
                    broker.port,
                    username=broker.username,
                    password=broker.password,
                    tls_context=ssl.create_default_context() if broker.tls else None,
                    will=aiomqtt.Will(availability, "offline", qos=1, retain=True),
                    timeout=10,
                    # TCP_NODELAY: small messages in a row must not wait for acknowledgements (Nagle).
                    socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
                ) as client:
                    self._counts.connects += 1
                    pause_s, failed = _FIRST_PAUSE_S, False
                    log.warning("connected to %s:%d", broker.host, broker.port)
                    await client.publish(availability, "online", qos=1, retain=True)
                    for topic, payload in list(self._retained.items()):
                        await client.publish(topic, payload, qos=broker.qos, retain=True)
                    try:
                        await self._publish(client)
                    finally:
                        # A clean disconnect does not trigger the last will.
                        await client.publish(availability, "offline", qos=1, retain=True)
            except (aiomqtt.MqttError, OSError) as error:
                if not failed:
                    log.warning("no connection to %s:%d (%s); trying again", broker.host, broker.port, error)
                failed = True
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _publish(self, client: aiomqtt.Client) -> None:
        while True:
            await self._more.wait()
            self._more.clear()
            while self._waiting:
                topic, payload = self._waiting.popleft()
                try:
                    await client.publish(topic, payload, qos=self._broker.qos, retain=True)
                except aiomqtt.MqttError:
                    self._counts.errors += 1
                    self._waiting.appendleft((topic, payload))
                    self._more.set()
                    raise
                self._counts.sent += 1

    def _queue(self, messages: dict[str, str | bytes], is_status: bool) -> None:
        for topic, payload in messages.items():
            if is_status or topic.startswith(f"{self._broker.discovery}/"):
                self._retained[topic] = payload
            if len(self._waiting) >= _QUEUE:
                self._waiting.popleft()
                self._counts.dropped += 1
            self._waiting.append((topic, payload))
        self._more.set()

    def _messages(self, event: Event) -> dict[str, str | bytes]:
        base = f"{self._broker.prefix}/{event.session}"
        if not isinstance(event, Prediction):
            return {f"{base}/status/{event.worker}": event.state}
        messages: dict[str, str | bytes] = {}
        if self._broker.discovery and event.session not in self._announced:
            self._announced.add(event.session)
            messages |= discovery_messages(self._broker, event.session)
        messages[f"{base}/prediction"] = msgspec.json.encode(event)
        messages[f"{base}/transcript"] = f"{event.transcript.committed} {event.transcript.tentative}".strip()
        if event.sentiment is not None and event.confidence is not None:
            messages[f"{base}/sentiment"] = f"{event.sentiment:.3f}"
            messages[f"{base}/confidence"] = f"{event.confidence:.3f}"
            messages[f"{base}/emotion"] = event.top_emotion or ""
        return messages


def discovery_messages(broker: Broker, session: str) -> dict[str, str | bytes]:
    """Home Assistant's discovery of a session's sensors, one retained message each."""
    slug = re.sub(r"\W", "_", session)
    device = {"identifiers": [f"mien_{slug}"], "name": f"mien {session}", "sw_version": mien.__version__}
    messages: dict[str, str | bytes] = {}
    for name, state_class in _STATE_CLASSES.items():
        sensor: dict[str, object] = {
            "name": name.capitalize(),
            "unique_id": f"mien_{slug}_{name}",
            "state_topic": f"{broker.prefix}/{session}/{name}",
            "availability_topic": f"{broker.prefix}/bridge",
            "device": device,
        }
        if state_class:
            sensor["state_class"] = state_class
        messages[f"{broker.discovery}/sensor/mien_{slug}/{name}/config"] = json.dumps(sensor)
    return messages
