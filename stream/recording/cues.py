"""What a replay sends, in order: recorded messages as they were on the wire, and a cue for each recorded prediction.

A prediction depends on the features messages that inference had taken in by then and on nothing else; each recorded
prediction names those that came in since the one before. So a cue can have inference do exactly the same again, as long
as the recording holds all of them. It does not where recording began in the middle of a session, or lost a message:
then predictions are the same again once everything older has left the window.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from mien.clock import NS_PER_S
from mien.messages import Cue, Prediction, Span
from mien.stream.modality import WORKERS
from mien.stream.preview import encode_preview
from mien.stream.recording import channels
from mien.stream.recording.reader import Entry, Recording
from mien.stream.sound import sound_frames
from mien.stream.wire import VERSION_BYTE, Frames, topic

WINDOW_NS = 5 * NS_PER_S  # of the model; and of words, as long as they stay
_SETTLE_NS = NS_PER_S  # an encoder's steps, and rows that were on their way
_LOOK_AHEAD_NS = 2 * NS_PER_S  # a prediction may be written down before the features it was made from
_KEPT = 64  # messages that may be asked for again, per modality

_WORKER_OF = {modality: worker for worker, modality in WORKERS.items()}


class Sent(NamedTuple):
    """A message to publish: when it was written down, and by which worker it was sent."""

    log_ns: int
    worker: str
    frames: Frames


class Cued(NamedTuple):
    """A prediction to ask for.

    `exact`: whether the recording holds everything that it was made from.
    """

    log_ns: int
    cue: Cue
    recorded: Prediction
    exact: bool


class CueMaker:
    """Turns a recording into what is to be published.

    Args:
        recording: to replay.
        prime: begin with the recorded smoothed sentiment where the recording begins in the middle of a session. Only
            right for the model that made it.
    """

    def __init__(self, recording: Recording, *, prime: bool = True) -> None:
        self._recording = recording
        self._prime = prime
        self._seq = 0
        self._run: int | None = None
        self._next_seq = 0
        self._open: dict[tuple[str, int], dict[int, Frames]] = {}
        self._recent: dict[str, deque[tuple[int, int, Frames]]] = {}
        self._exact_from_ns: int | None = None
        self._priming = False
        self._smoothed: tuple[float, int] | None = None

    def items(self) -> Iterator[Sent | Cued]:
        """Messages and cues in the order in which they are to be sent."""
        waiting: deque[tuple[Entry, Prediction]] = deque()
        for entry in self._recording.entries():
            if entry.channel.startswith(channels.FEATURES):
                yield self._features(entry)
            elif entry.channel == channels.PREDICTION:
                waiting.append((entry, entry.prediction()))
            elif entry.channel.startswith(channels.STATUS):
                status = entry.status()
                if status.worker in WORKERS:
                    frames = [topic("status", status.session, status.worker), VERSION_BYTE, entry.data]
                    yield Sent(entry.log_ns, status.worker, frames)
            elif entry.channel == channels.VIDEO:
                yield Sent(entry.log_ns, "video", encode_preview(entry.preview(), "picture"))
            elif entry.channel == channels.AUDIO:
                yield Sent(entry.log_ns, "audio", sound_frames(entry.sound()))
            while waiting and (self._is_here(waiting[0][1]) or entry.log_ns - waiting[0][0].log_ns > _LOOK_AHEAD_NS):
                yield from self._cue(*waiting.popleft())
        while waiting:
            yield from self._cue(*waiting.popleft())

    def end(self) -> Cue:
        """The cue after the last."""
        return Cue(session=self._recording.session, seq=self._seq, t_end_ns=0, end=True)

    def _features(self, entry: Entry) -> Sent:
        record, frames = entry.features()
        self._open.setdefault((record.modality, record.run), {})[record.seq] = frames
        self._recent.setdefault(record.modality, deque(maxlen=_KEPT)).append((record.run, record.seq, frames))
        return Sent(entry.log_ns, _WORKER_OF.get(record.modality, "video"), frames)

    def _is_here(self, prediction: Prediction) -> bool:
        return all(
            seq in self._open.get((modality, run), {})
            for modality, spans in prediction.inputs.items()
            for run, first, last in spans
            for seq in range(first, last + 1)
        )

    def _cue(self, entry: Entry, prediction: Prediction) -> Iterator[Sent | Cued]:
        new_run = prediction.run != self._run
        began_late = new_run and prediction.seq > 0
        gap = not new_run and prediction.seq != self._next_seq
        self._run, self._next_seq = prediction.run, prediction.seq + 1
        inputs: dict[str, tuple[Span, ...]] = {}
        missing = False
        for modality, spans in prediction.inputs.items():
            found: list[Span] = []
            for run, first, last in spans:
                held = self._open.get((modality, run), {})
                if began_late or gap:
                    # What came before and was not named was taken in by a prediction that is not in the recording.
                    first = min([first, *held])
                for seq in range(first, last + 1):
                    if seq not in held:
                        frames = self._again(modality, run, seq)
                        if frames is None:
                            missing = True
                            continue
                        yield Sent(entry.log_ns, _WORKER_OF.get(modality, "video"), frames)
                    if found and found[-1][0] == run and found[-1][2] + 1 == seq:
                        found[-1] = (run, found[-1][1], seq)
                    else:
                        found.append((run, seq, seq))
                self._open[modality, run] = {seq: frames for seq, frames in held.items() if seq > last}
            inputs[modality] = tuple(found)
        if new_run and not began_late and not missing:
            self._exact_from_ns, self._priming = None, False
        elif began_late or gap or missing:
            self._exact_from_ns, self._priming = prediction.t_end_ns + WINDOW_NS + _SETTLE_NS, True
        exact = self._exact_from_ns is None or prediction.t_end_ns >= self._exact_from_ns
        smoothed = None
        if exact and self._priming:
            self._priming = False
            smoothed = self._smoothed if self._prime else None
        yield Cued(
            entry.log_ns,
            Cue(
                session=prediction.session,
                seq=self._seq,
                t_end_ns=prediction.t_end_ns,
                inputs=inputs,
                absent=prediction.absent,
                reset=new_run,
                smoothed=smoothed,
            ),
            prediction,
            exact,
        )
        self._seq += 1
        if prediction.sentiment_smooth is not None:
            self._smoothed = (prediction.sentiment_smooth, prediction.t_end_ns)

    def _again(self, modality: str, run: int, seq: int) -> Frames | None:
        """A message that was taken in once more: inference that was started anew is sent the last values."""
        for known_run, known_seq, frames in self._recent.get(modality, ()):
            if (known_run, known_seq) == (run, seq):
                return frames
        return None
