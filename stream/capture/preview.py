"""Analysed pictures for viewers, and analysed audio for a recorder.

Pictures leave the video worker only while there is a subscription by name, only on loopback, at most 15 a second and
480 pixels long; `video.preview` restricts them to landmarks, or to nothing. Audio leaves the audio worker only if the
session shares it (`audio.share`), likewise. The bytes are in `stream/protocol.md`.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import msgspec
import numpy as np
import numpy.typing as npt

from mien.clock import NS_PER_S
from mien.config import Config
from mien.stream.bus.curve import host_of, is_loopback
from mien.stream.bus.preview import Preview, encode_preview
from mien.stream.bus.sockets import Publisher
from mien.stream.bus.sound import Sound, encode_sound
from mien.stream.bus.wire import VERSION_BYTE, topic
from mien.stream.modalities.base import Picture
from mien.stream.processes.priority import lower_priority
from mien.stream.sources.source import SAMPLE_RATE, Chunk

MAX_HZ = 15.0
MAX_SIDE = 480
QUALITY = 75
_PERIOD_NS = int(NS_PER_S / MAX_HZ)
_JITTER_NS = 2_000_000


class PreviewPublisher:
    """Sends previews on the video worker's socket while there are subscribers.

    Args:
        publisher: the worker's socket.
        config: the session's; `video.preview` says what may be sent.
        run: of the worker.

    Attributes:
        sent: number of previews sent. sent_bytes: total size of their frames.
    """

    def __init__(self, publisher: Publisher, config: Config, run: int) -> None:
        self.sent = 0
        self.sent_bytes = 0
        self._publisher = publisher
        self._session = config.session
        self._run = run
        self._pictures = config.video.preview == "picture"
        # A clip in full waits for slow readers; a viewer must not delay it.
        self._allowed = (
            config.video.preview != "none" and is_loopback(host_of(publisher.endpoint)) and not config.clip.fast
        )
        self._topics = {kind: topic("preview", config.session, kind) for kind in ("picture", "mesh")}
        self._edges = topic("preview", config.session, "edges")
        self._edges_known = False
        self._seq = dict.fromkeys(self._topics, 0)
        self._due_ns = 0
        self._encoder = ThreadPoolExecutor(1, "preview", partial(lower_priority, thread=True))
        self._pending: tuple[Future[bytes], tuple[str, ...], Preview] | None = None  # the kinds to send of it

    def offer(self, picture: Picture | None, t_ns: int, features_seq: int) -> None:
        """Prepare the subscribed parts of the last row's frame; `deliver` sends it when it is ready.

        A picture is scaled and encoded in a low-priority thread: right after a row was sent, other processes need the
        processor. A frame that comes while another is being encoded is skipped.
        """
        self.deliver()
        if picture is None or not self._allowed or self.is_busy or t_ns + _JITTER_NS < self._due_ns:
            return
        requested = tuple(
            kind for kind in self._topics if self._publisher.has_subscriber(self._topics[kind], by_name=True)
        )
        if not requested:
            return
        # A late one is compensated by half a period at most, so that the mean rate holds without bursts.
        self._due_ns = max(self._due_ns + _PERIOD_NS, t_ns + _PERIOD_NS // 2)
        if not self._edges_known:
            self._edges_known = True
            edges = np.ascontiguousarray(picture.edges(), "<u2").tobytes()
            self._publisher.send([self._edges, VERSION_BYTE, edges])
        height, width = picture.image.shape[:2]
        landmarks = np.zeros((0, 2), np.float32)
        if picture.landmarks is not None:
            size = np.array([width, height], np.float32)
            landmarks = np.asarray((picture.landmarks + np.float32(0.5)) / size, np.float32)
        faces = picture.faces
        preview = Preview(
            session=self._session,
            run=self._run,
            seq=0,
            t_ns=t_ns,
            features_seq=features_seq,
            width=width,
            height=height,
            landmarks=landmarks,
            faces=np.array(faces.boxes if faces is not None else (), np.float32).reshape(-1, 4),
            chosen=faces is not None and faces.following == "chosen",
        )
        if self._pictures and "picture" in requested:
            self._pending = self._encoder.submit(encode_jpeg, picture.image), requested, preview
        else:
            self._send(requested, preview, b"")

    @property
    def is_busy(self) -> bool:
        """Whether a picture is being encoded."""
        return self._pending is not None

    def deliver(self) -> None:
        """Send the encoded picture, if there is one."""
        if self._pending is not None and self._pending[0].done():
            (jpeg, requested, preview), self._pending = self._pending, None
            self._send(requested, preview, jpeg.result())

    def close(self) -> None:
        """Discard the picture being encoded."""
        self._encoder.shutdown(wait=False, cancel_futures=True)

    def _send(self, requested: tuple[str, ...], preview: Preview, jpeg: bytes) -> None:
        for kind in requested:
            shown = jpeg if kind == "picture" else b""
            frames = encode_preview(msgspec.structs.replace(preview, seq=self._seq[kind], jpeg=shown), kind)
            self._publisher.send(frames, keep=False)  # pictures are never repeated to late subscribers
            self._seq[kind] += 1
            self.sent += 1
            self.sent_bytes += sum(map(len, frames))


def encode_jpeg(image_bgr: npt.NDArray[np.uint8]) -> bytes:
    """A picture (H, W, 3) as JPEG, its longer side at most 480 pixels."""
    import cv2

    scale = MAX_SIDE / max(image_bgr.shape[:2])
    if scale < 1.0:
        size = max(1, round(image_bgr.shape[1] * scale)), max(1, round(image_bgr.shape[0] * scale))
        image_bgr = np.asarray(cv2.resize(image_bgr, size, interpolation=cv2.INTER_AREA), np.uint8)
    done, data = cv2.imencode(".jpg", image_bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return data.tobytes() if done else b""


class SoundPublisher:
    """Sends audio on the audio worker's socket while it is subscribed to and permitted.

    Args:
        publisher: the worker's socket. config: the session's. run: of the worker.
    """

    def __init__(self, publisher: Publisher, config: Config, run: int) -> None:
        self._publisher = publisher
        self._session, self._run, self._seq = config.session, run, 0
        self._topic = topic("sound", config.session)
        self._allowed = config.audio.share and is_loopback(host_of(publisher.endpoint))

    def offer(self, chunk: Chunk) -> None:
        """Send a chunk of audio, if it is subscribed to."""
        if not self._allowed or not len(chunk.samples):
            return
        if not self._publisher.has_subscriber(self._topic, by_name=True):
            return
        pcm = (np.clip(chunk.samples, -1.0, 1.0) * 32767.0).round().astype("<i2").tobytes()
        sound = Sound(
            session=self._session,
            run=self._run,
            seq=self._seq,
            t_start_ns=max(chunk.t_start_ns, 0),
            rate_hz=SAMPLE_RATE,
            pcm=pcm,
        )
        self._publisher.send(encode_sound(sound), keep=False)
        self._seq += 1
