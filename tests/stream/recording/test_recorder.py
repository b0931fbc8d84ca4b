"""The recorder is one more subscriber: each published message is in the file once, and losses are counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest

from mien.cli._session import await_recorder
from mien.config import BusConfig, Config, load_config
from mien.errors import RecordingError, WireError
from mien.messages import WORKERS, FeatureWindow, Prediction, Status
from mien.stream.bus.preview import Preview, encode_preview
from mien.stream.bus.sockets import Publisher, Receiver
from mien.stream.bus.sound import decode_sound, encode_sound
from mien.stream.bus.wire import decode_recent, encode_about, encode_features, encode_prediction, encode_status
from mien.stream.capture.preview import SoundPublisher
from mien.stream.capture.process import RecentFeatures
from mien.stream.recording import channels
from mien.stream.recording import recorder as recorder_module
from mien.stream.recording.control import RecorderProcess
from mien.stream.recording.reader import Recording, open_recording
from mien.stream.recording.recorder import Recorder
from mien.stream.sources.source import Chunk
from tests.stream.recording.sessions import ABOUT, START_NS, live
from tests.waiting import wait_until

STATUS = Status(session="default", worker="video", run=1, t_ns=START_NS, state="running", pid=1)
EVENTS = [what for _, what in live(4)]


class Bus:
    """A session's sockets."""

    def __init__(self, port: int) -> None:
        self.config = BusConfig(port=port)
        names = ("inference", *WORKERS)
        self.sockets = {name: Publisher(self.config.endpoint(name), self.config) for name in names}

    def send(self, what: FeatureWindow | Prediction) -> None:
        if isinstance(what, Prediction):
            self.sockets["inference"].send(encode_prediction(what))
        else:
            worker = next(name for name, modality in WORKERS.items() if modality == what.modality)
            self.sockets[worker].send(encode_features(what), keep=False)
        time.sleep(0.0005)

    def await_subscriber(self, topics: dict[str, bytes]) -> None:
        wait_until(lambda: all(self.sockets[name].has_subscriber(topic) for name, topic in topics.items()))

    def close(self) -> None:
        for socket in self.sockets.values():
            socket.close()


@pytest.fixture
def bus(port: int) -> Iterator[Bus]:
    opened = Bus(port)
    yield opened
    opened.close()


@contextmanager
def recording(bus: Bus, path: Path, *, video: bool = False, audio: bool = False) -> Iterator[Recorder]:
    """A recorder that listens."""
    recorder, stopping = Recorder(path, bus.config, video=video, audio=audio), threading.Event()
    thread = threading.Thread(target=recorder.run, args=(stopping,))
    thread.start()
    bus.await_subscriber({"inference": b"prediction/", **dict.fromkeys(WORKERS, b"features/")})
    try:
        yield recorder
    finally:
        stopping.set()
        thread.join(20)


def in_it(path: Path, *names: str) -> list[bytes]:
    kept: Recording = open_recording(path)
    return [entry.data for entry in kept.entries(set(names))]


def await_media(recorder: Recorder, count: dict[str, int]) -> None:
    wait_until(lambda: recorder._media == count)


def test_published_messages_are_recorded_once(bus: Bus, tmp_path: Path) -> None:
    path = tmp_path / "a.mcap"
    bus.sockets["inference"].send(encode_about(ABOUT))
    with recording(bus, path) as recorder:
        bus.sockets["inference"].send(encode_status(STATUS))
        for what in EVENTS:
            bus.send(what)
        # Another subscriber comes, and the last values are resent to all.
        other = Receiver(bus.config.address(), (b"",))
        wait_until(lambda: list(other.drain()), meanwhile=bus.sockets["inference"].service)
        other.close()
    predictions = [what for what in EVENTS if isinstance(what, Prediction)]
    assert list(open_recording(path).predictions()) == predictions
    read = [e.features()[1] for e in open_recording(path).entries(lambda name: name.startswith(channels.FEATURES))]
    assert sorted(read) == sorted(encode_features(w) for w in EVENTS if isinstance(w, FeatureWindow))
    assert len(in_it(path, channels.STATUS + "video")) == 1
    assert open_recording(path).about == ABOUT
    assert recorder.state.predictions == len(predictions)
    assert recorder.state.lost == 0
    texts = [msgspec.json.decode(data)["message"] for data in in_it(path, channels.TRANSCRIPT)]
    assert " ".join(texts).split() == [f"word{number}." for number in range(len(" ".join(texts).split()))] != []


def test_losses_are_counted_and_other_sessions_skipped(bus: Bus, tmp_path: Path) -> None:
    path = tmp_path / "a.mcap"
    with recording(bus, path) as recorder:
        for what in EVENTS:
            if isinstance(what, Prediction):
                if what.seq in (5, 6, 7):
                    continue
                bus.send(what)
                bus.send(msgspec.structs.replace(what, session="other"))
    assert recorder.state.lost == 3
    assert {p.session for p in open_recording(path).predictions()} == {"default"}


def test_it_ends_with_the_clip(bus: Bus, tmp_path: Path) -> None:
    path = tmp_path / "a.mcap"
    recorder = Recorder(path, bus.config)
    thread = threading.Thread(target=recorder.run, args=(threading.Event(),))
    thread.start()
    bus.await_subscriber({"inference": b"prediction/"})
    bus.send(next(what for what in EVENTS if isinstance(what, Prediction)))
    bus.sockets["inference"].send(encode_status(msgspec.structs.replace(STATUS, worker="inference", state="ended")))
    thread.join(20)
    assert not thread.is_alive()
    assert not open_recording(path).cut_off


def test_everything_sent_before_the_end_is_recorded(bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recorder that was stopped for a while has more to read than fits into one pass when it learns of the end."""
    path, features = tmp_path / "a.mcap", [what for what in EVENTS if isinstance(what, FeatureWindow)]
    video = next(what for what in features if what.modality == "vision")
    monkeypatch.setattr(recorder_module, "_DRAIN_S", 0.0)
    read, goes_on = Recorder._receive, threading.Event()
    monkeypatch.setattr(Recorder, "_receive", lambda self: goes_on.wait(20) and read(self))
    with recording(bus, path):
        for seq in range(300):
            bus.send(msgspec.structs.replace(video, seq=seq))
        bus.sockets["inference"].send(encode_status(msgspec.structs.replace(STATUS, worker="inference", state="ended")))
        time.sleep(0.3)
        goes_on.set()
        wait_until(lambda: path.exists() and not open_recording(path).cut_off)
    assert len(in_it(path, channels.FEATURES + "vision")) == 300


def test_recorder_subprocess_reports_progress_and_closes_its_file(bus: Bus, tmp_path: Path) -> None:
    path = tmp_path / "a.mcap"
    bus.sockets["inference"].send(encode_about(ABOUT))
    recorder = RecorderProcess(path, bus.config, "default")
    wait_until(lambda: recorder.wait_recording(0.05), "the recorder", meanwhile=bus.sockets["inference"].service)
    for what in EVENTS:
        bus.send(what)
    ended = recorder.stop()
    assert ended.state == "ended"
    assert not recorder.is_running
    assert not open_recording(path).cut_off
    assert ended.predictions == len(list(open_recording(path).predictions())) > 0
    again = RecorderProcess(path, bus.config)
    wait_until(lambda: not again.is_running)
    assert again.stop().state == "failed"
    assert "exists; choose another name" in str(again.state.error)


def test_session_does_not_begin_without_its_recorder(bus: Bus, tmp_path: Path) -> None:
    """One that a busy machine starts late would miss the beginning; Ctrl-C ends the wait."""
    recorder, stopping = RecorderProcess(tmp_path / "a.mcap", bus.config, "default"), threading.Event()
    with pytest.raises(RecordingError, match=r"received nothing within 0\.1 s"):
        await_recorder(recorder, stopping, timeout_s=0.1)
    stopping.set()
    await_recorder(recorder, stopping)
    recorder.stop()


def test_nothing_received_leaves_no_file(bus: Bus, tmp_path: Path) -> None:
    recorder, stopping = Recorder(tmp_path / "a.mcap", bus.config), threading.Event()
    stopping.set()
    with pytest.raises(RecordingError, match="nothing came from tcp://"):
        recorder.run(stopping)
    assert not (tmp_path / "a.mcap").exists()


def test_pictures_and_sound_are_subscribed_on_request_only(bus: Bus, tmp_path: Path) -> None:
    config = load_config(None, {"bus.port": bus.config.port, "audio.share": True})
    preview = Preview(
        session="default", run=1, seq=0, t_ns=START_NS, features_seq=0, width=64, height=48,
        landmarks=np.zeros((0, 2), np.float32), jpeg=b"\xff\xd8",
    )  # fmt: skip
    sound = SoundPublisher(bus.sockets["audio"], config, run=1)
    piece = Chunk(np.linspace(-1, 1, 640, dtype=np.float32), START_NS, START_NS)
    silent = SoundPublisher(bus.sockets["audio"], Config(bus=bus.config), run=1)
    first = next(what for what in EVENTS if isinstance(what, Prediction))
    for with_media in (False, True):
        path = tmp_path / f"{with_media}.mcap"
        with recording(bus, path, video=with_media, audio=with_media) as recorder:
            bus.send(first)
            if with_media:
                bus.await_subscriber({"video": b"preview/default/picture", "audio": b"sound/default/"})
                bus.sockets["video"].send(encode_preview(preview, "picture"), keep=False)
            silent.offer(piece)
            if not with_media:
                sound.offer(piece)
            else:
                sound.offer(piece)
                sound.offer(piece)
                await_media(recorder, {"video": 1, "audio": 2})
            time.sleep(0.2)
        assert len(in_it(path, channels.VIDEO)) == with_media
        kept = [entry.sound() for entry in open_recording(path).entries({channels.AUDIO})]
        assert [piece.seq for piece in kept] == [0, 1] * with_media
        for piece_kept in kept:
            samples = np.frombuffer(piece_kept.pcm, "<i2") / 32767
            np.testing.assert_allclose(samples, piece.samples, atol=1e-4)


def test_recent_features_are_those_of_the_last_seconds() -> None:
    sent = [what for _, what in live(20) if isinstance(what, FeatureWindow) and what.modality == "vision"]
    recent = RecentFeatures("default", "vision")
    assert recent.message() is None
    for message in sent:
        recent.add(encode_features(message), message.t_end_ns)
    packed = recent.message()
    assert packed is not None
    assert packed[0] == b"recent/default/vision"
    unpacked = decode_recent(packed)
    assert unpacked == [encode_features(message) for message in sent[-len(unpacked) :]]
    assert len(unpacked) == 8 * 25 + 1
    rarely = RecentFeatures("default", "vision")
    rarely.add(encode_features(sent[0]), 0)
    rarely.add(encode_features(sent[1]), 10**12)
    last = rarely.message()
    assert last is not None
    assert decode_recent(last) == [encode_features(sent[1])]


@pytest.mark.parametrize("broken", [b"", b"\xc1", b"\x91\x92\xc4\x01\x01\xc4\x00", b"\x93\x01\x02\x03"])
def test_broken_messages_are_refused(broken: bytes) -> None:
    with pytest.raises(WireError):
        decode_recent([b"recent/default/vision", b"\x01", broken])
    with pytest.raises(WireError):
        decode_sound([b"sound/default/", b"\x01" + broken, b"\x00\x00"])


def test_sound_round_trips() -> None:
    from mien.stream.bus.sound import Sound

    sound = Sound(session="default", run=3, seq=4, t_start_ns=START_NS, rate_hz=16_000, pcm=b"\x01\x02\x03\x04")
    assert decode_sound(encode_sound(sound)) == sound
    with pytest.raises(WireError, match="int16"):
        decode_sound([*encode_sound(sound)[:2], b"\x01"])


def test_recorder_without_a_session_ends_on_time(tmp_path: Path, port: int) -> None:
    recorder = Recorder(tmp_path / "talk.mcap", BusConfig(port=port))
    with pytest.raises(RecordingError, match=r"nothing came from .*is `mien run` running.*no .*talk\.mcap"):
        recorder.run(threading.Event(), seconds=0.3)
    assert not (tmp_path / "talk.mcap").exists()


def test_silent_session_does_not_delay_the_end(tmp_path: Path, bus: Bus) -> None:
    recorder = Recorder(tmp_path / "talk.mcap", bus.config)
    thread = threading.Thread(target=recorder.run, args=(threading.Event(), None, 1.0), daemon=True)
    thread.start()
    bus.await_subscriber({"inference": b"prediction/", **dict.fromkeys(WORKERS, b"features/")})
    for what in EVENTS[:5]:
        bus.send(what)
    thread.join(20)
    assert not thread.is_alive()
    assert open_recording(tmp_path / "talk.mcap").path.is_file()


def test_worker_port_is_detected(tmp_path: Path, bus: Bus) -> None:
    wrong = BusConfig(port=bus.config.port + 1)
    bus.sockets["video"].send(encode_status(STATUS))
    recorder = Recorder(tmp_path / "talk.mcap", wrong)
    thread = threading.Thread(target=recorder.run, args=(threading.Event(), None, 1.0), daemon=True)
    thread.start()
    while thread.is_alive():
        bus.sockets["video"].service()
        time.sleep(0.005)
    assert any("video worker's" in note for note in recorder.notes)
