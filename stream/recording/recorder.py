"""The recorder: one more subscriber, which writes what it receives. The pipeline never waits for it."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import zmq

from mien.clock import NS_PER_S, Clock
from mien.config import BusConfig
from mien.errors import RecordingError, WireError
from mien.messages import WORKERS, About
from mien.stream.bus.preview import decode_edges, decode_preview
from mien.stream.bus.sockets import Receiver
from mien.stream.bus.sound import decode_sound
from mien.stream.bus.subscriber import explain_silence, misdirected
from mien.stream.bus.wire import FeatureHeader, decode_about, decode_prediction, decode_recent, decode_status, topic
from mien.stream.recording import channels
from mien.stream.recording.writer import RecordingWriter

_QUEUE = 10_000  # messages queued while the disk is slow
_DRAIN_S = 0.5  # for messages in transit when it is told to stop


class RecorderState(msgspec.Struct, frozen=True):
    """A recorder's progress.

    Attributes:
        state: "waiting" until a session is received, "recording", "ended", "failed".
        path: of the file. bytes: its size. seconds: from the first message to the last.
        predictions, lost: how many were written, and how many are known to be missing.
        error: why it failed.
    """

    state: str
    path: str
    bytes: int = 0
    seconds: float = 0.0
    predictions: int = 0
    lost: int = 0
    error: str | None = None


class Recorder:
    """Writes one session into one file.

    Args:
        path: to create.
        bus: of the session.
        session: its name; None takes the first one received.
        video, audio: also record pictures and sound, if the session publishes them.

    Attributes:
        notes: messages for the user, one line each.

    Raises:
        RecordingError: the file cannot be created.
    """

    def __init__(
        self, path: Path, bus: BusConfig, session: str | None = None, *, video: bool = False, audio: bool = False
    ) -> None:
        self.notes: list[str] = []
        self._wanted = {"video": video, "audio": audio}
        self._media: Counter[str] = Counter()
        self._bus = bus
        self._session = session
        self._clock = Clock()
        self._receivers: dict[str, Receiver] = {}
        self._ended = False
        self._about: About | None = None
        self._last_status: dict[str, bytes] = {}
        self._newest: dict[str, tuple[int, int]] = {}
        self._first_seq: dict[tuple[str, int], int] = {}  # per worker and run, the first seq received live
        self._older: set[tuple[str, int, int]] = set()
        self._lost: Counter[str] = Counter()
        self._predictions = 0
        self._last_word_ns = -1
        self._first_ns: int | None = None
        self._last_ns = 0
        self._writer = RecordingWriter(path)

    @property
    def state(self) -> RecorderState:
        return RecorderState(
            state="ended" if self._ended else "recording" if self._about is not None else "waiting",
            path=str(self._writer.path),
            bytes=self._writer.size_bytes,
            seconds=0.0 if self._first_ns is None else (self._last_ns - self._first_ns) / NS_PER_S,
            predictions=self._predictions,
            lost=sum(self._lost.values()),
        )

    def run(
        self,
        stopping: threading.Event,
        report: Callable[[RecorderState], None] | None = None,
        seconds: float = math.inf,
    ) -> RecorderState:
        """Record until told to stop, the session's clip has ended, or `seconds` have passed.

        The time counts from the first message, or from the start while nothing comes.

        Args:
            report: called when the state changes, and once a second.

        Raises:
            RecordingError: the disk is full or the file cannot be written; earlier messages stay readable.
        """
        poller = zmq.Poller()
        try:
            self._connect(poller)
            said, said_s = "", 0.0
            stop_s = math.inf
            began_s, silent, heard = time.monotonic(), True, False
            # A busy machine may take longer: what an ended session has sent is read to its end.
            while time.monotonic() < stop_s or (self._ended and heard):
                poller.poll(100)
                heard = self._receive()
                if silent and self._first_ns is not None:
                    began_s, silent = time.monotonic(), False
                self._writer.flush_if_due()
                state = self.state
                if report is not None and (state.state != said or time.monotonic() - said_s >= 1.0):
                    said, said_s = state.state, time.monotonic()
                    report(state)
                if stop_s == math.inf and (stopping.is_set() or self._ended or time.monotonic() - began_s >= seconds):
                    stop_s = time.monotonic() + _DRAIN_S
                if stop_s < math.inf and stopping.is_set() and not heard:
                    break
            self._close(time.monotonic() - began_s)
        except RecordingError:
            self._writer.abandon()
            self._predictions = self._writer.kept.get(channels.PREDICTION, 0)
            raise
        finally:
            for receiver in self._receivers.values():
                receiver.close()
        return self.state

    def _connect(self, poller: zmq.Poller) -> None:
        def prefix(kind: str, part: str = "") -> bytes:
            return f"{kind}/".encode() if self._session is None else topic(kind, self._session, part)

        bus = self._bus
        wanted = {"inference": tuple(prefix(kind) for kind in ("prediction", "status", "about"))}
        wanted |= {worker: (prefix("features"), prefix("recent")) for worker in WORKERS}
        if self._wanted["video"]:
            # By name: a worker sends previews only to those who subscribe to pictures.
            wanted["video"] += (prefix("preview", "picture"), prefix("preview", "edges"))
        if self._wanted["audio"]:
            wanted["audio"] += (prefix("sound"),)
        for worker, prefixes in wanted.items():
            self._receivers[worker] = Receiver(bus.address(worker), prefixes, _QUEUE, bus.keys)
            poller.register(self._receivers[worker].socket, zmq.POLLIN)

    def _receive(self) -> bool:
        heard = False
        for receiver in self._receivers.values():
            for frames in receiver.drain():
                heard = True
                try:
                    self._take(frames, self._clock.now_ns())
                except WireError as error:
                    self._lost[str(error).split(":")[0]] += 1
        return heard

    def _take(self, frames: list[bytes], now_ns: int) -> None:
        kind, session, *_ = frames[0].decode("ascii", "replace").split("/")
        if self._session is None:
            self._session = session
        if session != self._session:
            return
        match kind:
            case "prediction":
                prediction = decode_prediction(frames)
                if self._is_new("prediction", prediction.run, prediction.seq):
                    self._predictions += 1
                    self._write(channels.PREDICTION, frames[2], now_ns, prediction.t_end_ns)
            case "features":
                self._take_features(frames, now_ns)
            case "recent":
                self._take_recent(frames, now_ns)
            case "status":
                self._take_status(frames, now_ns)
            case "about":
                self._take_about(frames, now_ns)
            case "preview" if frames[0].endswith(b"/picture"):
                preview = decode_preview(frames)
                if preview.jpeg and self._is_new("preview", preview.run, preview.seq):
                    self._media["video"] += 1
                    self._write(channels.VIDEO, channels.image_record(preview), now_ns, preview.t_ns)
            case "preview" if frames[0].endswith(b"/edges") and not self._media["mesh"]:
                decode_edges(frames)
                self._media["mesh"] += 1
                self._write(channels.MESH, msgspec.json.encode({"edges": frames[2]}), now_ns, now_ns)
            case "sound":
                sound = decode_sound(frames)
                if self._is_new("sound", sound.run, sound.seq):
                    self._media["audio"] += 1
                    self._write(channels.AUDIO, channels.sound_record(sound), now_ns, sound.t_start_ns)

    def _write(self, channel: str, data: bytes, now_ns: int, publish_ns: int) -> None:
        self._first_ns = now_ns if self._first_ns is None else self._first_ns
        self._last_ns = now_ns
        self._writer.write(channel, data, now_ns, publish_ns)

    def _take_features(self, frames: list[bytes], now_ns: int) -> None:
        record, data = channels.record_features(frames)
        if not self._is_new(record.modality, record.run, record.seq):
            return
        self._first_seq.setdefault((record.modality, record.run), record.seq)
        self._write(channels.FEATURES + record.modality, data, now_ns, record.t_end_ns)
        self._take_words(record, now_ns)

    def _take_recent(self, frames: list[bytes], now_ns: int) -> None:
        """Rows from before we joined. They end at the first live row, or slightly after it."""
        firsts = dict(self._first_seq)
        for message in decode_recent(frames):
            record, data = channels.record_features(message)
            key = (record.modality, record.run)
            if record.seq >= firsts.get(key, 0):
                self._take_features(message, now_ns)
            elif (*key, record.seq) not in self._older:
                self._older.add((*key, record.seq))
                self._write(channels.FEATURES + record.modality, data, now_ns, record.t_end_ns)

    def _take_words(self, record: FeatureHeader, now_ns: int) -> None:
        if record.words and record.words[-1][1] < self._last_word_ns - 60 * NS_PER_S:
            self._last_word_ns = -1  # the clip has looped
        fresh = [word for word in record.said() if word.committed and word.t_start_ns > self._last_word_ns]
        if fresh:
            self._last_word_ns = fresh[-1].t_start_ns
            text = " ".join(f"({word.text.strip()}?)" if word.uncertain else word.text.strip() for word in fresh)
            entry = channels.log_entry(fresh[0].t_start_ns, text)
            self._write(channels.TRANSCRIPT, entry, now_ns, fresh[-1].t_end_ns)

    def _take_status(self, frames: list[bytes], now_ns: int) -> None:
        status = decode_status(frames)
        if self._last_status.get(status.worker) == frames[2]:
            return
        self._last_status[status.worker] = frames[2]
        self._ended = status.state == "ended" if status.worker == "inference" else self._ended
        self._write(channels.STATUS + status.worker, frames[2], now_ns, status.t_ns)

    def _take_about(self, frames: list[bytes], now_ns: int) -> None:
        about = decode_about(frames)
        if about == self._about:
            return
        first, self._about = self._about is None, about
        self._write(channels.ABOUT, frames[2], now_ns, about.t_ns)
        if first:
            self._writer.attach(channels.ATTACHMENT, msgspec.json.format(frames[2], indent=2), now_ns)

    def _is_new(self, what: str, run: int, seq: int) -> bool:
        """False for a repeated last value; counts gaps within a run."""
        last_run, last_seq = self._newest.get(what, (-1, -1))
        if run == last_run:
            if seq <= last_seq:
                return False
            self._lost[what] += seq - last_seq - 1
        self._newest[what] = (run, seq)
        return True

    def _close(self, waited_s: float) -> None:
        if not self._writer.messages:
            self._writer.abandon()
            why = explain_silence(self._bus.address(), self._session, waited_s, self._bus.keys)
            raise RecordingError(f"{why} There is no {self._writer.path}.")
        elsewhere = misdirected(self._last_status, self._bus.address())
        if elsewhere is not None and not self._predictions:
            self.notes.append(f"no prediction was received: {elsewhere}")
        for name, wanted in self._wanted.items():
            if wanted and not self._media[name]:
                self.notes.append(_NO_MEDIA[name])
        self._writer.close()


_NO_MEDIA = {
    "video": "no pictures arrived: the session has no camera, or video.preview does not allow them",
    "audio": "no sound arrived: the session has no microphone, or audio.share does not allow it",
}
