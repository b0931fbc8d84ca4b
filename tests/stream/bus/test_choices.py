"""Choices over real sockets: who may make them, which are rejected, and that no one else notices."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from mien.clock import Clock
from mien.config import BusConfig, ClipConfig, Config, VideoConfig
from mien.errors import BusError, SourceError, WireError
from mien.messages import Bool, Float32
from mien.models.baseline import Rest, face_at_rest
from mien.stream.bus.choices import (
    MAX_CHOICE_BYTES,
    Choice,
    Place,
    decode_choice,
    decode_offer,
    encode_choice,
    encode_offer,
)
from mien.stream.bus.chooser import Chooser
from mien.stream.bus.keyring import Keyring
from mien.stream.bus.sockets import Publisher, Receiver
from mien.stream.capture.choosing import Choosing
from mien.stream.modalities.base import Faces, Modality
from mien.stream.modalities.resting import Resting
from mien.stream.sources.devices import choosable
from tests.waiting import wait_until

CHOICE: dict[str, Any] = {"version": 1, "session": "default", "worker": "video", "nonce": "a1", "face": "largest"}


class Capturing(Modality):
    """Records its calls, in place of a capturing modality."""

    def __init__(self) -> None:
        self.source = "one.mp4"
        self.followed: list[Place | None] = []
        self.measured: Resting | None = None

    @property
    def used(self) -> str:
        return self.source

    def use(self, source: str) -> None:
        if source == "broken.mp4":
            raise SourceError("clip broken.mp4 cannot be read")
        self.source = source

    def faces(self) -> Faces:
        return Faces(((0.1, 0.2, 0.3, 0.4),), "chosen" if self.followed and self.followed[-1] else "largest")

    def follow(self, place: Place | None) -> None:
        self.followed.append(place)

    def measure(self, seconds: float | None) -> None:
        def rest(values: Float32, valid: Bool, seen_s: float) -> Rest:
            return face_at_rest(values, valid, seen_s, "test-vision")

        self.measured = None if seconds is None else Resting(seconds, rest)

    @property
    def resting(self) -> Resting | None:
        return self.measured

    prepare = start = rows = health = close = None  # type: ignore[assignment]


Capturing.__abstractmethods__ = frozenset()


@contextmanager
def worker(config: Config) -> Iterator[tuple[Publisher, Capturing, Choosing]]:
    """A video worker's socket, served as by its process."""
    publisher = Publisher(config.bus.endpoint("video"), config.bus)
    modality, ended = Capturing(), threading.Event()
    choosing = Choosing(publisher, "video", config, 7, Clock(), modality)

    def serve() -> None:
        while not ended.wait(0.005):
            publisher.service()
            choosing.take(lambda *_: None)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield publisher, modality, choosing
    finally:
        ended.set()
        thread.join()
        choosing.close()
        publisher.close()


def config(port: int, **changes: Any) -> Config:
    bus = BusConfig(port=port, **changes)
    return Config(bus=bus, video=VideoConfig(choices=["two.mp4", "broken.mp4"]))


def test_sources_and_faces_are_offered_and_chosen(port: int) -> None:
    set_up = config(port)
    with worker(set_up) as (_, modality, choosing), Chooser(set_up.bus.address("video"), "video") as chooser:
        offer = chooser.offer()
        names = {source.name: source.id for source in offer.sources}
        assert names.keys() >= {"one.mp4", "two.mp4", "broken.mp4"}
        assert offer.used == names["one.mp4"]
        assert chooser.choose(offer, source=names["two.mp4"]).used == names["two.mp4"]
        assert modality.source == "two.mp4"
        with pytest.raises(BusError, match=r"broken\.mp4 cannot be read"):
            chooser.choose(offer, source=names["broken.mp4"])
        with pytest.raises(BusError, match="no longer there"):
            chooser.choose(offer, source="0" * 16)
        assert chooser.choose(offer, face=(0.25, 0.5)).following == "chosen"
        assert chooser.choose(offer, face="largest").following == "largest"
        assert modality.followed == [(0.25, 0.5), None]
        assert choosing.refused == 0


def test_baseline_is_measured_and_returned_once(port: int) -> None:
    set_up = config(port)
    with worker(set_up) as (_, modality, _), Chooser(set_up.bus.address("video"), "video") as chooser:
        offer = chooser.offer()
        assert (offer.left_s, offer.rest) == (None, None)
        with pytest.raises(BusError, match="no measurement is in progress"):
            chooser.choose(offer, rest=0.0)
        assert chooser.choose(offer, rest=5.0).left_s == 5.0
        answer = chooser.choose(offer, rest=0.0)
        assert (answer.left_s, answer.rest) == (5.0, None)
        assert modality.measured is not None
        modality.measured.add(np.full((50, 122), 0.5, np.float32), [True] * 40 + [False] * 10, 5.0)
        answer = chooser.choose(offer, rest=0.0)
        assert answer.rest is not None
        assert (answer.rest.extractor, answer.rest.seconds) == ("test-vision", 4.0)
        assert set(answer.rest.mean) == {0.5}
        with pytest.raises(BusError, match="no measurement is in progress"):
            chooser.choose(offer, rest=0.0)


def test_too_little_data_or_another_camera_gives_no_measurement(port: int) -> None:
    set_up = config(port)
    with worker(set_up) as (_, modality, _), Chooser(set_up.bus.address("video"), "video") as chooser:
        offer = chooser.offer()
        chooser.choose(offer, rest=5.0)
        assert modality.measured is not None
        modality.measured.add(np.zeros((50, 122), np.float32), [False] * 50, 5.0)
        with pytest.raises(BusError, match=r"a face was in view for 0\.0 s, 3 are needed"):
            chooser.choose(offer, rest=0.0)
        chooser.choose(offer, rest=5.0)
        chooser.choose(offer, source=next(each.id for each in offer.sources if each.name == "two.mp4"))
        with pytest.raises(BusError, match="the source was changed"):
            chooser.choose(offer, rest=0.0)


def test_other_subscribers_see_no_offers(port: int) -> None:
    """Neither one that subscribes to everything nor one for features: offers go to those who ask by name."""
    set_up = config(port)
    with worker(set_up) as (publisher, _, _):
        receiver = Receiver(publisher.endpoint, (b"features/", b"status/"))
        wait_until(lambda: b"status/" in publisher.subscriptions)
        with Chooser(publisher.endpoint, "video") as chooser:
            chooser.offer()
        time.sleep(0.2)
        assert not list(receiver.drain())
        receiver.close()


@pytest.mark.parametrize(
    "frame",
    [
        b"{}",
        b"{" * 500,
        msgspec.json.encode(CHOICE | {"session": "another"}),
        msgspec.json.encode(CHOICE | {"worker": "audio"}),
        msgspec.json.encode(CHOICE | {"version": 2}),
        msgspec.json.encode(CHOICE | {"face": [0.5, 1.5]}),
        msgspec.json.encode(CHOICE | {"source": "../etc/passwd", "face": None}),
        msgspec.json.encode(CHOICE | {"source": "a1"}),
        msgspec.json.encode(CHOICE | {"rest": 15.0}),
        msgspec.json.encode(CHOICE | {"rest": 1.0, "face": None}),
        msgspec.json.encode(CHOICE | {"rest": 301.0, "face": None}),
        msgspec.json.encode(CHOICE | {"rest": -0.5, "face": None}),
    ],
)
def test_invalid_choices_are_counted_and_ignored(port: int, frame: bytes) -> None:
    set_up = config(port)
    with worker(set_up) as (publisher, modality, choosing):
        sender: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.XSUB)
        sender.connect(publisher.endpoint)
        sender.send(frame)
        wait_until(lambda: choosing.refused == 1)
        sender.send(b"{" + b" " * MAX_CHOICE_BYTES)  # libzmq cuts this connection, and the worker continues
        with Chooser(publisher.endpoint, "video") as chooser:
            assert chooser.offer().used
        assert (modality.source, modality.followed) == ("one.mp4", [])
        sender.close(0)


@pytest.mark.parametrize("changed", [{"control": "none"}, {"fast": True}])
def test_nothing_is_offered_if_choosing_is_disabled(port: int, changed: dict[str, Any]) -> None:
    fast = changed.pop("fast", False)
    set_up = msgspec.structs.replace(config(port, **changed), clip=ClipConfig(fast=fast))
    with (
        worker(set_up) as (_, modality, _),
        Chooser(set_up.bus.address("video"), "video") as chooser,
        pytest.raises(BusError, match=r"bus\.control"),
    ):
        chooser.offer(1.0)
    assert modality.source == "one.mp4"


@pytest.mark.parametrize("control", ["local", "keys"])
def test_remote_choosing_needs_keys_and_permission(tmp_path: Path, port: int, control: str) -> None:
    here = _own_address()
    if here is None:
        pytest.skip("this machine has no address but that of loopback")
    keyring = Keyring(tmp_path)
    keyring.create()
    set_up = config(port, host="0.0.0.0", keys=str(tmp_path), control=control)
    keyring.add("itself", keyring.identity().public, host=here)
    with worker(set_up) as (_, modality, choosing):
        with Chooser(f"tcp://{here}:{port + 1}", "video", keys=tmp_path) as chooser:
            offer = chooser.offer()
            if control == "keys":
                assert chooser.choose(offer, face=(0.25, 0.5)).following == "chosen"
            else:
                with pytest.raises(BusError):
                    chooser.choose(offer, face=(0.25, 0.5), timeout_s=1.0)
                assert choosing.refused == 1
                assert modality.followed == []
        with Chooser(f"tcp://127.0.0.1:{port + 1}", "video", keys=tmp_path) as chooser:
            assert chooser.choose(chooser.offer(), face="largest").following == "largest"


def test_refused_keys_say_what_to_do(tmp_path: Path, port: int) -> None:
    served, asking = Keyring(tmp_path / "served"), Keyring(tmp_path / "asking")
    for keyring in (served, asking):
        keyring.create()
    asking.add("camera", served.identity().public, host="127.0.0.1")
    with (
        worker(config(port, keys=str(served.folder))) as (publisher, _, _),
        Chooser(publisher.endpoint, "video", keys=asking.folder) as chooser,
        pytest.raises(BusError, match=r"refuses the key of this machine; .* mien keys add NAME \w+"),
    ):
        chooser.offer(3.0)


def test_a_file_is_offered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "film.mp4").write_bytes(b"")
    names = ["film.mp4", str(tmp_path / "film.mp4"), "./film.mp4"]
    offered = choosable("video", Config(video=VideoConfig(source=names[0], choices=names)), names[0])
    assert [each.source for each in offered if each.name == "film.mp4"] == ["film.mp4"]


def _own_address() -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        address = str(probe.getsockname()[0])
    return None if address.startswith("127.") else address


@given(st.binary(max_size=600))
def test_random_bytes_are_refused_as_choices(frame: bytes) -> None:
    with pytest.raises(WireError):
        decode_choice(frame)


def test_choices_and_offers_round_trip(port: int) -> None:
    choice = Choice(session="default", worker="video", nonce="a1", face=(0.25, 0.5))
    assert decode_choice(encode_choice(choice)) == choice
    with worker(config(port)) as (publisher, _, _), Chooser(publisher.endpoint, "video") as chooser:
        offer = chooser.offer()
    assert decode_offer(encode_offer(offer)) == offer
