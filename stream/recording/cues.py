"""A replay's messages in order: recorded ones in wire form, and a cue for each recorded prediction.

A prediction depends only on the features messages that inference had processed by then; each recorded prediction
names those processed since the one before. So a cue can make inference repeat exactly that, if the recording holds
them all; if it starts in mid-session, from the first prediction whose whole window is recorded. After a lost
message, predictions are equal again once that time has left the window.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple

from mien.clock import NS_PER_S
from mien.messages import NOT_UNDERSTOOD, WORKER_OF, WORKERS, Cue, Prediction, Span, spans_of
from mien.stream.bus.preview import encode_preview
from mien.stream.bus.sound import encode_sound
from mien.stream.bus.wire import VERSION_BYTE, Frames, topic
from mien.stream.recording import channels
from mien.stream.recording.reader import Entry, Recording
from mien.windowing import WINDOW_NS

_SETTLE_NS = NS_PER_S  # an encoder's steps, and rows in transit
_LOOK_AHEAD_NS = 2 * NS_PER_S  # a prediction may be recorded before the features it was made from
_SLOWEST_NS = 10 * NS_PER_S  # between two messages of a modality, such as words on a busy machine
_MOST_OPEN = 4096
_KEPT = 64  # messages per modality that may be requested again


class Sent(NamedTuple):
    """A message to publish, with its log time and worker."""

    log_ns: int
    worker: str
    frames: Frames


class Cued(NamedTuple):
    """A prediction to request.

    `exact`: whether the recording holds all of its inputs.
    """

    log_ns: int
    cue: Cue
    recorded: Prediction
    exact: bool


class CueMaker:
    """Turns a recording into messages and cues.

    Args:
        recording: to replay.
        prime: start from the recorded smoothed sentiment if the recording starts in mid-session. Only valid for the
            model that made it.
    """

    def __init__(self, recording: Recording, *, prime: bool = True) -> None:
        self._recording = recording
        self._prime = prime
        self._seq = 0
        names = recording.channels
        self._modalities = {n.removeprefix(channels.FEATURES) for n in names if n.startswith(channels.FEATURES)}
        self._run: int | None = None
        self._next_seq = 0
        self._open: dict[tuple[str, int], dict[int, Frames]] = {}
        self._recent: dict[str, deque[tuple[int, int, Frames]]] = {}
        self._times_ns: dict[tuple[str, int, int], tuple[int, int]] = {}  # of a message: its end, and its log time
        self._exact_from_ns: int | None = None
        self._priming = False
        self._waiting: deque[tuple[Entry, Prediction]] = deque()
        self._later: deque[Sent] = deque()  # recorded after the first pending prediction

    def items(self) -> Iterator[Sent | Cued]:
        """Messages and cues in sending order: a cue after all that it names."""
        for entry in self._recording.entries():
            if entry.channel == channels.PREDICTION:
                self._waiting.append((entry, entry.prediction()))
            elif (sent := self._sent(entry)) is not None:
                if self._waiting:
                    self._later.append(sent)
                else:
                    yield sent
            while self._waiting and self._is_resolved(entry.log_ns):
                yield from self._next()
        while self._waiting:
            yield from self._next()

    def end(self) -> Cue:
        """The cue after the last."""
        return Cue(session=self._recording.session, seq=self._seq, t_end_ns=0, end=True)

    def _next(self) -> Iterator[Sent | Cued]:
        yield from self._cue()
        while self._later and (not self._waiting or self._later[0].log_ns <= self._waiting[0][0].log_ns):
            yield self._later.popleft()

    def _is_resolved(self, now_ns: int) -> bool:
        """Whether the inputs of the first pending prediction are known, or never will be."""
        entry, prediction = self._waiting[0]
        breaks = self._follows_gap(prediction)
        if breaks and self._modalities - self._first_named().keys():  # where they were then is not told yet
            return now_ns - entry.log_ns > _SLOWEST_NS
        here = self._is_here(prediction)
        if here and breaks and prediction.run != self._run:
            # Rows from before the recorder joined may be recorded after the first predictions.
            here = self._covers_window(self._processed_before())
        return here or now_ns - entry.log_ns > _LOOK_AHEAD_NS

    def _sent(self, entry: Entry) -> Sent | None:
        if entry.channel.startswith(channels.FEATURES):
            return self._features(entry)
        if entry.channel.startswith(channels.STATUS):
            status = entry.status()
            if status.worker in WORKERS:
                frames = [topic("status", status.session, status.worker), VERSION_BYTE, entry.data]
                return Sent(entry.log_ns, status.worker, frames)
        elif entry.channel == channels.VIDEO:
            return Sent(entry.log_ns, "video", encode_preview(entry.preview(), "picture"))
        elif entry.channel == channels.MESH:
            name = topic("preview", self._recording.session, "edges")
            return Sent(entry.log_ns, "video", [name, VERSION_BYTE, entry.edges()])
        elif entry.channel == channels.AUDIO:
            return Sent(entry.log_ns, "audio", encode_sound(entry.sound()))
        return None

    def _features(self, entry: Entry) -> Sent:
        record, frames = entry.features()
        held = self._open.setdefault((record.modality, record.run), {})
        held[record.seq] = frames
        if len(held) > _MOST_OPEN:  # no prediction names them: the model lacks this modality
            oldest = next(iter(held))
            del held[oldest]
            self._times_ns.pop((record.modality, record.run, oldest), None)
        self._times_ns[record.modality, record.run, record.seq] = record.t_end_ns, entry.log_ns
        self._recent.setdefault(record.modality, deque(maxlen=_KEPT)).append((record.run, record.seq, frames))
        return Sent(entry.log_ns, WORKER_OF.get(record.modality, "video"), frames)

    def _is_here(self, prediction: Prediction) -> bool:
        return all(
            seq in self._open.get((modality, run), {})
            for modality, spans in prediction.inputs.items()
            for run, first, last in spans
            for seq in range(first, last + 1)
        )

    def _follows_gap(self, prediction: Prediction) -> bool:
        """Whether predictions are missing before this one."""
        if prediction.run != self._run:
            return prediction.seq > 0
        return prediction.seq != self._next_seq

    def _processed_before(self) -> dict[str, tuple[Span, ...]]:
        """What inference had processed before missing predictions: all before the first span named afterwards."""
        named = self._first_named()
        numbers: dict[str, list[tuple[int, int]]] = {}
        for (modality, run), held in self._open.items():
            if modality not in named:
                # It has been silent for long; its recent values arrived before the first messages.
                log_ns = self._waiting[0][0].log_ns + NS_PER_S
                taken = [seq for seq in held if self._times_ns[modality, run, seq][1] <= log_ns]
            else:
                taken = [seq for seq in held if run != named[modality][0] or seq < named[modality][1]]
            numbers.setdefault(modality, []).extend((run, seq) for seq in sorted(taken))
        return spans_of(numbers)

    def _covers_window(self, before: Mapping[str, tuple[Span, ...]]) -> bool:
        """Whether the messages cover the window of the first pending prediction without a gap."""
        named = self._first_named()
        since_ns = self._waiting[0][1].t_end_ns - WINDOW_NS - _SETTLE_NS
        for modality in {*before, *named}:
            parts = [*before.get(modality, ()), *([named[modality]] if modality in named else [])]
            if not parts:
                continue
            run, oldest, _ = parts[0]
            ended_ns, _ = self._times_ns.get((modality, run, oldest), (since_ns + 1, 0))
            if oldest > 0 and ended_ns > since_ns:
                return False
            if any(a[0] == b[0] and a[2] + 1 != b[1] for a, b in pairwise(parts)):
                return False
        return True

    def _cue(self) -> Iterator[Sent | Cued]:
        """The cue of the first pending prediction, after all that it names: the player sends few cues ahead."""
        entry, prediction = self._waiting[0]
        new_run, breaks = prediction.run != self._run, self._follows_gap(prediction)
        before = self._processed_before() if breaks else {}
        covered = new_run and self._covers_window(before)
        self._waiting.popleft()
        self._run, self._next_seq = prediction.run, prediction.seq + 1
        inputs: dict[str, tuple[Span, ...]] = {}
        missing, needed_ns = False, 0
        for modality in {**before, **prediction.inputs}:
            numbers: list[tuple[int, int]] = []
            for run, first, last in (*before.get(modality, ()), *prediction.inputs.get(modality, ())):
                held = self._open.get((modality, run), {})
                for seq in range(first, last + 1):
                    _, log_ns = self._times_ns.pop((modality, run, seq), (0, 0))
                    needed_ns = max(needed_ns, log_ns)
                    if seq not in held:
                        frames = self._repeated(modality, run, seq)
                        if frames is None:
                            missing = True
                            continue
                        yield Sent(entry.log_ns, WORKER_OF.get(modality, "video"), frames)
                    numbers.append((run, seq))
                self._open[modality, run] = {seq: frames for seq, frames in held.items() if seq > last}
            inputs |= spans_of({modality: numbers})
        while self._later and self._later[0].log_ns <= needed_ns:
            yield self._later.popleft()
        smoothed = None
        if missing or (breaks and not covered):
            self._exact_from_ns, self._priming = prediction.t_end_ns + WINDOW_NS + _SETTLE_NS, True
        elif breaks:
            self._exact_from_ns, self._priming = None, True
        elif new_run:
            self._exact_from_ns, self._priming = None, False
        exact = self._exact_from_ns is None or prediction.t_end_ns >= self._exact_from_ns
        if exact and self._priming and prediction.sentiment_smooth is not None:
            self._priming = False
            # No time passes between this and the prediction itself, so that it is reproduced.
            smoothed = (prediction.sentiment_smooth, prediction.t_end_ns) if self._prime else None
        yield Cued(
            entry.log_ns,
            Cue(
                session=prediction.session,
                seq=self._seq,
                t_end_ns=prediction.t_end_ns,
                inputs=inputs,
                # The messages themselves carry that reason.
                absent={name: why for name, why in prediction.absent.items() if why != NOT_UNDERSTOOD},
                reset=new_run,
                smoothed=smoothed,
            ),
            prediction,
            exact,
        )
        self._seq += 1

    def _repeated(self, modality: str, run: int, seq: int) -> Frames | None:
        """A message that was processed twice: a restarted inference process receives the last values again."""
        for known_run, known_seq, frames in self._recent.get(modality, ()):
            if (known_run, known_seq) == (run, seq):
                return frames
        return None

    def _first_named(self) -> dict[str, Span]:
        """Per modality, the first span named by a pending prediction."""
        named: dict[str, Span] = {}
        for _, prediction in self._waiting:
            for modality, spans in prediction.inputs.items():
                if spans:
                    named.setdefault(modality, spans[0])
        return named
