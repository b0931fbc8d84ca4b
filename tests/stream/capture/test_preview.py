"""Previews: who gets them, how many, and their content. Real sockets; synthetic frames."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import cv2
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mien.clock import NS_PER_MS, NS_PER_S
from mien.config import BusConfig, ClipConfig, Config, VideoConfig
from mien.errors import WireError
from mien.messages import Float32
from mien.stream.bus.preview import decode_edges, decode_preview, encode_preview
from mien.stream.bus.sockets import Publisher, Receiver
from mien.stream.capture.preview import PreviewPublisher
from mien.stream.modalities.base import Picture
from tests.stream.pictures import portrait
from tests.waiting import wait_until

EDGES = np.array([(0, 1), (1, 2)], np.uint16)
FRAME_NS = 33_333_333


@dataclass
class Camera:
    """Offers a frame every 33 ms of capture time, as fast as it is called."""

    publisher: Publisher
    previews: PreviewPublisher
    landmarks: Float32 | None = None
    t_ns: int = NS_PER_S
    seq: int = 0
    image: np.ndarray = field(default_factory=lambda: portrait(640))

    def film(self, frames: int) -> None:
        """Each picture is finished before the next frame comes, as at thirty a second."""
        for _ in range(frames):
            self.previews.offer(Picture(self.image, self.landmarks, lambda: EDGES), self.t_ns, self.seq)
            self.t_ns += FRAME_NS
            self.seq += 1
            self.settle()

    def settle(self) -> None:
        wait_until(lambda: not self.previews.is_busy, meanwhile=self.previews.deliver)


def config(preview: str = "picture", *, fast: bool = False) -> Config:
    video = msgspec.convert({"preview": preview}, VideoConfig)
    return Config(video=video, clip=ClipConfig(fast=fast))


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    publisher = Publisher("tcp://127.0.0.1:*", BusConfig())
    publisher.endpoint = publisher.address
    yield publisher
    publisher.close()


def connect(publisher: Publisher, *prefixes: bytes) -> Receiver:
    """A receiver whose subscriptions have arrived."""
    receiver = Receiver(publisher.endpoint, prefixes)
    wait_until(lambda: all(p in publisher.subscriptions for p in prefixes), meanwhile=publisher.service)
    return receiver


def received(receiver: Receiver) -> list[list[bytes]]:
    time.sleep(0.2)
    return list(receiver.drain())


def camera(publisher: Publisher, preview: str = "picture", *, fast: bool = False) -> Camera:
    return Camera(publisher, PreviewPublisher(publisher, config(preview, fast=fast), run=7))


def test_previews_are_sent_only_on_request(publisher: Publisher) -> None:
    """A wildcard subscription does not request pictures."""
    receiver = connect(publisher, b"")
    filming = camera(publisher)
    filming.film(30)
    assert received(receiver) == []
    assert filming.previews.sent_bytes == 0
    receiver.close()


def test_previews_are_small_with_landmarks_at_most_15_hz(publisher: Publisher) -> None:
    receiver = connect(publisher, b"preview/default/picture", b"preview/default/edges")
    filming = camera(publisher)
    filming.landmarks = np.array([(0, 0), (319.5, 159.5), (639, 639)], np.float32)
    first_ns = filming.t_ns
    filming.film(91)  # three seconds
    messages = received(receiver)
    edges = [frames for frames in messages if frames[0].endswith(b"/edges")]
    previews = [decode_preview(frames) for frames in messages if frames[0].endswith(b"/picture")]
    assert decode_edges(edges[0]).tolist() == EDGES.tolist()
    assert 40 <= len(previews) <= 46
    assert [preview.seq for preview in previews] == list(range(len(previews)))
    assert filming.previews.sent == len(previews)
    for preview in previews:
        assert preview.t_ns == first_ns + preview.features_seq * FRAME_NS
        assert (preview.run, preview.width, preview.height) == (7, 640, 640)
        np.testing.assert_allclose(preview.landmarks * 640 - 0.5, filming.landmarks, atol=1e-3)
        picture = cv2.imdecode(np.frombuffer(preview.jpeg, np.uint8), cv2.IMREAD_COLOR)
        assert picture is not None
        assert picture.shape == (480, 480, 3)
    receiver.close()


def test_frames_do_not_wait_for_preview_encoding(publisher: Publisher) -> None:
    """Frames in between are skipped, and what arrives is complete and in order."""
    receiver = connect(publisher, b"preview/default/picture")
    filming = camera(publisher)
    for number in range(300):
        filming.previews.offer(Picture(filming.image, None, lambda: EDGES), NS_PER_S + number * NS_PER_S // 15, number)
    filming.settle()
    previews = [decode_preview(frames) for frames in received(receiver) if frames[0].endswith(b"/picture")]
    assert 1 <= len(previews) < 300
    assert [preview.seq for preview in previews] == list(range(len(previews)))
    assert all(preview.t_ns == NS_PER_S + preview.features_seq * NS_PER_S // 15 for preview in previews)
    assert all(preview.jpeg for preview in previews)
    filming.previews.close()
    receiver.close()


def test_late_subscriber_gets_edges_but_no_old_picture(publisher: Publisher) -> None:
    first = connect(publisher, b"preview/default/picture")
    camera(publisher).film(3)
    later = connect(publisher, b"preview/default/picture/", b"preview/")
    publisher.service()
    assert {frames[0] for frames in received(later)} == {b"preview/default/edges"}
    first.close()
    later.close()


def test_previews_stop_without_viewers(publisher: Publisher) -> None:
    receiver = connect(publisher, b"preview/default/picture")
    filming = camera(publisher)
    filming.film(10)
    sent = filming.previews.sent
    assert sent
    receiver.close()
    wait_until(lambda: not publisher.subscriptions, meanwhile=publisher.service)
    filming.film(30)
    assert filming.previews.sent == sent


def test_mesh_preview_holds_no_picture(publisher: Publisher) -> None:
    receiver = connect(publisher, b"preview/default/mesh")
    filming = camera(publisher)
    filming.film(4)
    previews = [decode_preview(frames) for frames in received(receiver)]
    assert previews
    assert {preview.jpeg for preview in previews} == {b""}
    assert {preview.landmarks.shape for preview in previews} == {(0, 2)}
    receiver.close()


@pytest.mark.parametrize(
    ("preview", "fast", "sends"), [("mesh", False, True), ("none", False, False), ("picture", True, False)]
)
def test_disabled_previews_are_not_sent(publisher: Publisher, preview: str, fast: bool, sends: bool) -> None:
    receiver = connect(publisher, b"preview/default/picture")
    camera(publisher, preview, fast=fast).film(10)
    previews = [decode_preview(frames) for frames in received(receiver)]
    assert bool(previews) is sends
    assert all(each.jpeg == b"" for each in previews)
    receiver.close()


@given(st.lists(st.binary(max_size=64), max_size=4), st.binary(max_size=200))
def test_invalid_previews_are_refused(frames: list[bytes], header: bytes) -> None:
    for each in (frames, [b"preview/default/picture", b"\x01" + header, b""]):
        try:
            preview = decode_preview(each)
        except WireError:
            continue
        assert np.isfinite(preview.landmarks).all()


def test_refusals_name_their_cause() -> None:
    from mien.stream.bus.preview import Preview

    def frames(**changes: object) -> list[bytes]:
        fields: dict[str, object] = {
            "session": "default",
            "run": 1,
            "seq": 0,
            "t_ns": 50 * NS_PER_MS,
            "features_seq": 0,
        }
        fields |= {"width": 64, "height": 64, "landmarks": np.zeros((3, 2), np.float32), "jpeg": b"x"} | changes
        return encode_preview(Preview(**fields), "picture")  # type: ignore[arg-type]

    assert decode_preview(frames()).jpeg == b"x"
    for changes, cause in (
        ({"width": 0}, "oversized"),
        ({"jpeg": bytes(600_000)}, "oversized"),
        ({"landmarks": np.zeros((5000, 2), np.float32)}, "truncated"),
        ({"landmarks": np.full((2, 2), np.nan, np.float32)}, "nonfinite"),
        ({"t_ns": -1}, "time"),
        ({"seq": -1}, "malformed"),
        ({"session": "a/b"}, "malformed"),
    ):
        with pytest.raises(WireError, match=cause):
            decode_preview(frames(**changes))
    with pytest.raises(WireError, match="truncated"):
        decode_edges([b"preview/default/edges", b"\x01", b"abc"])
