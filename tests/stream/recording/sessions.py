"""Synthetic sessions: workers' messages, processed by a real assembler, as a recorder would receive them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from mien.clock import NS_PER_MS, NS_PER_S
from mien.messages import EMOTIONS, About, FeatureWindow, ModalitySpec, Prediction, Transcript, Word, spans_of
from mien.stream.bus.wire import encode_about, encode_features, encode_prediction
from mien.stream.inference.assembler import Assembler
from mien.stream.recording import channels
from mien.stream.recording.writer import RecordingWriter
from tests.windows import Window, window_of

START_NS = 1_700_000_000 * NS_PER_S
SPECS = {
    "vision": ModalitySpec("vision", dim=4, rate_hz=10, steps=50, extractor="test-vision"),
    "audio": ModalitySpec("audio", dim=3, rate_hz=50, steps=250, extractor="test-audio"),
    "text": ModalitySpec("text", dim=2, rate_hz=0, steps=50, snapshot=True, extractor="test-text"),
}
Event = tuple[int, FeatureWindow | Prediction]  # arrival at the recorder, and what arrived


def digest(window: Window) -> float:
    """A number that changes with every bit of a window, as a stand-in for a model that is sensitive to all of it."""
    content = hashlib.sha256(repr((sorted(window.absent.items()), window.words)).encode())
    for name in sorted(window.features):
        content.update(window.features[name].tobytes() + window.mask[name].tobytes())
        content.update(repr(window.age_ms[name]).encode())
    return int.from_bytes(content.digest()[:6], "little") / 2**48 * 6 - 3


def predict(window: Window, run: int, seq: int, inputs: dict[str, list[tuple[int, int]]]) -> Prediction:
    """The stand-in's prediction."""
    value = digest(window)
    share = (value + 3) / 6
    emotions = dict.fromkeys(EMOTIONS, 0.0) | {"happy": share, "neutral": 1 - share}
    observed = [name for name, mask in window.mask.items() if mask.any()]
    made = bool(observed)
    return Prediction(
        session="default",
        run=run,
        seq=seq,
        t_end_ns=window.t_end_ns,
        sentiment=value if made else None,
        sentiment_smooth=value / 2 if made else None,
        emotions=emotions if made else None,
        confidence=share if made else None,
        gates={name: (1 / len(observed) if name in observed else 0.0) for name in window.mask},
        age_ms=window.age_ms,
        absent=window.absent,
        abstains=None if made else "no face, no voice and no words in the window",
        transcript=Transcript(" ".join(w.text for w in window.words if w.committed)),
        words=window.words,
        latency={"capture": 2.0, "infer": 3.0, "total": 10.0 + 20 * share} if made else {},
        model="test-1/onnx-fp32",
        inputs=spans_of(inputs),
    )


def messages(seconds: float, seed: int = 0) -> list[tuple[int, FeatureWindow]]:
    """Features of a session and when they arrive at inference, in that order: late, jittery, in order by modality."""
    rng, values = random.Random(seed), np.random.default_rng(seed)
    sent: list[tuple[int, FeatureWindow]] = []
    for name, period_ms, rows in (("vision", 40, 1), ("audio", 40, 2), ("text", 800, 3)):
        arrival_ns = 0
        for seq in range(int(seconds * 1000 / period_ms)):
            t_end_ns = START_NS + (seq + 1) * period_ms * NS_PER_MS
            t_start_ns = t_end_ns - period_ms * NS_PER_MS
            times = t_start_ns + np.arange(rows, dtype=np.int64) * 20 * NS_PER_MS
            words: tuple[Word, ...] = ()
            counts_from_ns = 0
            if name == "text":
                # As recorded by mien before and after words counted from a fixed time on.
                counts_from_ns = t_end_ns + 500 * NS_PER_MS if seq % 4 else 0
                t_start_ns = t_end_ns - 4 * NS_PER_S
                times = np.linspace(t_start_ns, t_end_ns - 1000, rows).astype(np.int64) // 1000 * 1000
                words = tuple(
                    Word(f"word{seq - back}.", t_end_ns - (back + 1) * 800 * NS_PER_MS,
                         t_end_ns - back * 800 * NS_PER_MS - 1, True, 0.9)
                    for back in (2, 1, 0) if seq >= back
                )  # fmt: skip
            message = FeatureWindow(
                session="default", modality=name, run=7, seq=seq, t_start_ns=t_start_ns, t_end_ns=t_end_ns,
                extractor=SPECS[name].extractor, values=values.standard_normal((rows, SPECS[name].dim)).astype("<f4"),
                valid=np.ones(rows, bool), times_ns=times, words=words, counts_from_ns=counts_from_ns,
            )  # fmt: skip
            delay_ms = {"vision": 30, "audio": 60, "text": 900}[name] * rng.uniform(0.5, 2.5)
            arrival_ns = max(arrival_ns + 1, t_end_ns + int(delay_ms * NS_PER_MS))
            sent.append((arrival_ns, message))
    return sorted(sent, key=lambda item: item[0])


def live(seconds: float, seed: int = 0) -> list[Event]:
    """A session as a recorder receives it: features, and a prediction for each frame."""
    rng = random.Random(seed + 1)
    assembler = Assembler(SPECS)
    taken: dict[str, list[tuple[int, int]]] = {}
    events: list[Event] = []
    last_ns: dict[str, int] = {}
    seq = 0
    for arrival_ns, message in messages(seconds, seed):
        # The recorder may receive a message a little before or after inference does, those of a worker in their order.
        heard_ns = max(arrival_ns + rng.randint(-20, 20) * NS_PER_MS, last_ns.get(message.modality, 0) + 1)
        last_ns[message.modality] = heard_ns
        events.append((heard_ns, message))
        assert assembler.push(message)
        taken.setdefault(message.modality, []).append((message.run, message.seq))
        if message.modality == "vision" and rng.random() < 0.8:  # the others are superseded
            prediction = predict(window_of(assembler, message.t_end_ns), 42, seq, taken)
            taken, seq = {}, seq + 1
            events.append((arrival_ns + 3 * NS_PER_MS, prediction))
    return sorted(events, key=lambda item: item[0])


ABOUT = About(
    session="default", run=42, t_ns=START_NS, origin="clip", label="talk.mp4", model="test-1/onnx-fp32",
    config={"inference": {"smoothing_s": 1.0}}, versions={"mien": "0"}, modalities=tuple(SPECS.values()),
)  # fmt: skip


def write(
    path: Path, events: Sequence[Event], *, keep: Callable[[FeatureWindow | Prediction], bool] = lambda _: True
) -> Path:
    """A recording of these events, closed cleanly."""
    writer = RecordingWriter(path)
    writer.write(channels.ABOUT, encode_about(ABOUT)[2], START_NS, START_NS)
    writer.attach(channels.ATTACHMENT, msgspec.json.encode(ABOUT), START_NS)
    for t_ns, what in events:
        if not keep(what):
            continue
        if isinstance(what, Prediction):
            writer.write(channels.PREDICTION, encode_prediction(what)[2], t_ns, what.t_end_ns)
        else:
            record, data = channels.record_features(encode_features(what))
            writer.write(channels.FEATURES + record.modality, data, t_ns, record.t_end_ns)
    writer.close()
    return path
