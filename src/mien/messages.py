"""The data that flows through mien: frozen, typed, few.

`FeatureWindow`, `Prediction` and `Status` travel between processes (see `stream/protocol.md`). Every time is session
time in nanoseconds (see `mien.clock`). Arrays are checked once, where they enter (`mien.stream.bus.wire` for messages,
the extractors for their own output), and trusted after that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]
UInt8 = npt.NDArray[np.uint8]

WorkerState = Literal["starting", "ready", "running", "degraded", "ended", "stopped", "failed"]
Origin = Literal["live", "clip", "sample", "replay"]
# The seven emotions and their order, which every model, message and table follows.
EMOTIONS = ("neutral", "happy", "sad", "angry", "fear", "disgust", "surprise")
NEUTRAL = EMOTIONS.index("neutral")
# The CMU-MOSI scale: -3 strongly negative ... +3 strongly positive.
SENTIMENT_MIN, SENTIMENT_MAX = -3.0, 3.0

# Messages of one modality by number: run of its worker, first and last.
Span = tuple[int, int, int]

# Worker (a process, named after its device) -> modality (of its rows, by the field's usual name).
WORKERS = {"video": "vision", "audio": "audio", "text": "text"}
WORKER_OF = {modality: worker for worker, modality in WORKERS.items()}
MODALITIES = ("text", "audio", "vision")
MODALITY_NAMES = {"vision": "face", "audio": "voice", "text": "words"}  # for people, in the order to show them

# Why no words count, although there is speech.
NOT_UNDERSTOOD = "speech not understood: unclear, or another language"


class ModalitySpec(msgspec.Struct, frozen=True):
    """Description of a modality.

    Attributes:
        name: "text", "audio", "vision", or one of your own.
        dim: numbers in a row.
        rate_hz: rows per second on the model's time axis; 0 for rows that are words, not instants.
        steps: rows in one window of the model (T).
        snapshot: True if each message replaces all earlier rows (words), False if rows are appended (frames).
        extractor: name and version of the extractor that makes the rows. A checkpoint rejects rows of any other.
    """

    name: str
    dim: int
    rate_hz: float
    steps: int
    snapshot: bool = False
    extractor: str = ""


class Word(msgspec.Struct, frozen=True):
    """One recognised word, with the capture time of its sound.

    `committed` words never change again; the others are tentative and are replaced by the next message.
    `uncertain` words are likely no more than a guess, as of another language; they do not count. That may change for a
    committed word while the speaker continues.
    """

    text: str
    t_start_ns: int
    t_end_ns: int
    committed: bool = True
    probability: float = 1.0
    uncertain: bool = False


class Phrase(msgspec.Struct, frozen=True):
    """The sentiment of committed words between two pauses or full stops, without face, voice or other phrases.

    Times are those of its first and last word. `sentiment` is -3 ... 3, `emotion` the most probable one. While the
    speaker continues, the phrase may grow, and is rated again.
    """

    t_start_ns: int
    t_end_ns: int
    sentiment: float
    emotion: str


class FeatureWindow(msgspec.Struct, frozen=True, kw_only=True):
    """Rows that a capture worker publishes. Only its worker sees them without session, modality and extractor.

    Attributes:
        run: number that changes whenever the worker restarts, so that sequence numbers are never mixed.
        seq: 0, 1, 2 ... within a run.
        t_start_ns, t_end_ns: the span that the message covers. `t_end_ns` is also the worker's watermark: nothing
            older will follow.
        values: shape (n, dim), float32, finite. n may be 0: time advanced without data.
        valid: shape (n,), False where the row carries no evidence (no face, no voice).
        times_ns: shape (n,), capture time of each row.
        words: the transcript in the window, text only. phrases: of its committed words.
        stamps: session time at which a stage was done, in ns: "read" (the sensor delivered), "sent".
        reason: why none of it counts, if there is more to say than that nothing was observed.
        counts_from_ns: the instant from which the rows of a snapshot count; 0 is `t_end_ns`. Rows that take some
            tenths of a second to compute then count from the same instant, whether ready at once or just in time.
    """

    session: str = ""
    modality: str = ""
    run: int = 0
    seq: int = 0
    t_start_ns: int
    t_end_ns: int
    extractor: str = ""
    values: Float32
    valid: Bool
    times_ns: Int64
    words: tuple[Word, ...] = ()
    phrases: tuple[Phrase, ...] = ()
    stamps: dict[str, int] = {}
    reason: str = ""
    counts_from_ns: int = 0


class Transcript(msgspec.Struct, frozen=True):
    """The words in the window: `committed` stays as it is, `tentative` may still change, `uncertain` does not count."""

    committed: str = ""
    tentative: str = ""
    uncertain: str = ""


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """What a subscriber gets.

    Attributes:
        run: number that changes whenever inference starts anew; `seq` counts from 0 within it, without gaps.
        t_end_ns: capture time of the newest evidence.
        sentiment: -3 (negative) ... 3 (positive) for this window alone; None when mien abstains.
        sentiment_smooth: the same, exponentially smoothed over time.
        emotions: probability per emotion, summing to 1; None when mien abstains.
        confidence: calibrated probability that the top emotion is right; None when mien abstains.
        gates: share of each modality in the decision, summing to 1; exactly 0 for a missing one.
        age_ms: age of each modality's newest evidence; None if it has none in the window.
        absent: per modality that is missing as a whole, why.
        abstains: why there is no prediction, None if there is one.
        words: the words in the window with their times; new ones are shown at once, and count from `text.settle_s` on
            after the sound in which they were heard.
        phrases: the sentiment of the committed ones alone, by phrase.
        latency: milliseconds per stage: capture, feature, transport, wait, infer, and total, which counts from
            `stamps["read"]` of the row that triggered the prediction to the moment it was published.
        model: checkpoint and engine, for instance "cmmsf-1a2b3c4d/onnx-fp32".
        inputs: features messages that were taken in since the prediction before, per modality in their order. With
            them a recording can be predicted anew to the very same numbers.
        top_emotion: the most probable emotion, None when mien abstains. Follows from `emotions`.
        t_end_us: `t_end_ns` in whole microseconds, for languages whose numbers are exact up to 2^53 only.
    """

    session: str
    run: int
    seq: int
    t_end_ns: int
    sentiment: float | None
    sentiment_smooth: float | None
    emotions: dict[str, float] | None
    confidence: float | None
    gates: dict[str, float]
    age_ms: dict[str, float | None]
    absent: dict[str, str] = {}
    abstains: str | None = None
    transcript: Transcript = Transcript()
    words: tuple[Word, ...] = ()
    latency: dict[str, float] = {}
    model: str = ""
    inputs: dict[str, tuple[Span, ...]] = {}
    top_emotion: str | None = None
    t_end_us: int = 0
    phrases: tuple[Phrase, ...] = ()

    def __post_init__(self) -> None:
        # Fields, so that they are in the JSON too; computed, so that no message can get them wrong.
        top = max(self.emotions, key=self.emotions.__getitem__) if self.emotions else None
        msgspec.structs.force_setattr(self, "top_emotion", top)
        msgspec.structs.force_setattr(self, "t_end_us", self.t_end_ns // 1000)


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a process. Published once a second, and at once when the state changes.

    Attributes:
        worker: "video", "audio", "text", "inference" or "supervisor".
        fps: rows (workers) or predictions (inference) per second over the last second.
        drops: everything that was dropped since the start, by cause.
        lag_ms: how far behind capture the newest published row was.
        cpu_percent: of one core, over the last second. rss_mb: resident memory, MiB.
        detail: more facts about this worker, for instance the number of faces.
        next_seq: the number that its next features message or prediction of this run will have: a
            subscriber that has every number below it has missed nothing.
    """

    session: str
    worker: str
    run: int
    t_ns: int
    state: WorkerState
    pid: int
    fps: float = 0.0
    drops: dict[str, int] = {}
    lag_ms: float | None = None
    last_error: str | None = None
    cpu_percent: float | None = None
    rss_mb: float | None = None
    detail: dict[str, str | float | int | bool | None] = {}
    next_seq: int | None = None


class About(msgspec.Struct, frozen=True, kw_only=True):
    """Description of a session. Published by inference when it is ready, and sent again to later subscribers.

    Attributes:
        run: of inference, as in its predictions.
        origin: where its pictures and sound come from. label: their name, for display.
        model: checkpoint and engine.
        config: the session's configuration, without the user names and passwords of addresses.
        versions: of mien and of the packages that its numbers depend on.
        modalities: the model's inputs, and the extractors that it needs.
    """

    session: str
    run: int
    t_ns: int
    origin: Origin
    label: str
    model: str
    config: dict[str, Any]
    versions: dict[str, str]
    modalities: tuple[ModalitySpec, ...]


class Cue(msgspec.Struct, frozen=True, kw_only=True):
    """Tells an inference process that replays a recording what to predict, and from which messages.

    Attributes:
        seq: 0, 1, 2 ... within a replay.
        t_end_ns: the instant to predict for.
        inputs: messages to consume first, as in `Prediction.inputs`.
        absent: as in the recorded prediction: the reasons for missing modalities.
        reset: start with empty state, as a new inference process does.
        smoothed: smoothed sentiment and its time in ns, to continue from; None continues from its own.
        end: the recording is over; nothing is predicted.
    """

    session: str
    seq: int
    t_end_ns: int
    inputs: dict[str, tuple[Span, ...]] = {}
    absent: dict[str, str] = {}
    reset: bool = False
    smoothed: tuple[float, int] | None = None
    end: bool = False


def spans_of(numbers: Mapping[str, list[tuple[int, int]]]) -> dict[str, tuple[Span, ...]]:
    """(run, seq) of messages per modality as spans: consecutive numbers are merged."""
    spans: dict[str, tuple[Span, ...]] = {}
    for modality, pairs in numbers.items():
        merged: list[Span] = []
        for run, seq in pairs:
            if merged and merged[-1][0] == run and merged[-1][2] + 1 == seq:
                merged[-1] = (run, merged[-1][1], seq)
            else:
                merged.append((run, seq, seq))
        spans[modality] = tuple(merged)
    return spans
