"""Features of a synthetic stream: rows of the right shape and pace, to measure what follows capture."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mien.clock import NS_PER_S
from mien.engines.rings import Windows
from mien.messages import EMOTIONS, FeatureWindow, Float32, ModalitySpec, Prediction, Word
from mien.stream.inference.assembler import Assembler

FRAME_HZ = 30
SOUND_HZ = 10
WORDS_HZ = 1.25
_GOLDEN = 0.618034  # its multiples are spread evenly
_POOL = 257  # rows of each modality, which repeat
_START_NS = 60 * NS_PER_S  # its first words precede its start, and times on the wire must not be negative


class SyntheticStream:
    """Messages as from the three workers: 30 frames, 10 chunks of sound and 1.25 sets of words a second.

    Sound and words of streams with different seeds come at different frames, as those of people who do not know of each
    other do.

    Args:
        specs: the modalities, by name. seed: of the rows.
        start_ns: session time of the first frame. frame_hz: frames a second, at most 30.
    """

    def __init__(
        self,
        session: str,
        specs: Mapping[str, ModalitySpec],
        seed: int = 0,
        start_ns: int = _START_NS,
        frame_hz: float = FRAME_HZ,
    ) -> None:
        self.session = session
        self._specs = dict(specs)
        random = np.random.default_rng(seed)
        # Made once: the benchmark should not measure the random generator.
        self._pool = {
            name: random.standard_normal((_POOL, spec.dim)).astype(np.float32) for name, spec in self._specs.items()
        }
        self._start_ns = start_ns
        self._frame, self._hz = 0, frame_hz
        self._phase = seed * _GOLDEN % 1.0  # of a period
        self._sent: dict[str, int] = dict.fromkeys(self._specs, 0)
        self._until_ns: dict[str, int] = dict.fromkeys(self._specs, start_ns)

    @property
    def due_ns(self) -> int:
        """When the next frame is captured."""
        return self._start_ns + int(self._frame * NS_PER_S / self._hz)

    def next(self) -> list[FeatureWindow]:
        """The messages that become ready with the next frame, that of the frame last."""
        t_ns = self.due_ns
        self._frame += 1
        messages = []
        for name, spec in self._specs.items():
            pace_hz = WORDS_HZ if spec.snapshot else FRAME_HZ if spec.rate_hz <= FRAME_HZ else SOUND_HZ
            # Half a frame early: the frame interval is not a whole number of nanoseconds.
            periods = ((t_ns - self._start_ns) / NS_PER_S + 0.5 / self._hz) * pace_hz
            if pace_hz < FRAME_HZ:
                periods += self._phase
            if not self._sent[name] or int(periods) > int(periods - pace_hz / self._hz):
                messages.append(self._message(spec, t_ns))
        return sorted(messages, key=lambda message: self._specs[message.modality].rate_hz == FRAME_HZ)

    def feed(self, assembler: Assembler) -> int:
        """Have the next frame's messages assembled. Returns when that frame is captured."""
        due_ns = self.due_ns
        for message in self.next():
            assembler.push(message)
        return due_ns

    def _message(self, spec: ModalitySpec, t_ns: int) -> FeatureWindow:
        since_ns, self._until_ns[spec.name] = self._until_ns[spec.name], t_ns
        if spec.snapshot:
            rows, since_ns = spec.steps // 4, t_ns - 4 * NS_PER_S
            times_ns = np.linspace(since_ns, t_ns, rows).astype(np.int64)
        elif spec.rate_hz <= FRAME_HZ:
            rows, times_ns = 1, np.array([t_ns], np.int64)
        else:
            rows = max(1, round((t_ns - since_ns) * spec.rate_hz / NS_PER_S))
            times_ns = t_ns - np.arange(rows, dtype=np.int64)[::-1] * int(NS_PER_S / spec.rate_hz)
        seq, self._sent[spec.name] = self._sent[spec.name], self._sent[spec.name] + 1
        begin = seq * 7 % (_POOL - rows)
        return FeatureWindow(
            session=self.session,
            modality=spec.name,
            run=1,
            seq=seq,
            t_start_ns=min(since_ns, int(times_ns[0])),
            t_end_ns=t_ns,
            extractor=spec.extractor,
            values=self._pool[spec.name][begin : begin + rows],
            valid=np.ones(rows, bool),
            times_ns=times_ns,
        )


def synthetic_inputs(specs: Mapping[str, ModalitySpec], count: int) -> list[dict[str, Float32]]:
    """Inputs of the whole model at successive instants of one stream, with a full window from the start."""
    stream, windows = SyntheticStream("synthetic", specs, 0), Windows(specs)
    assembler, inputs = Assembler(specs, windows=windows), []
    for frame in range(6 * FRAME_HZ + count):
        t_ns = stream.feed(assembler)
        if frame >= 6 * FRAME_HZ:
            look = windows.look([assembler.place], [t_ns])
            seen = {name: track.gather(look.places, look.ends_ns[name]) for name, track in windows.tracks.items()}
            inputs.append({f"{name}.{part}": array.copy() for name, arrays in seen.items()
                           for part, array in zip(("features", "mask"), arrays, strict=True)})  # fmt: skip
    return inputs


def synthetic_prediction(session: str, number: int, now_ns: int, sentiment: float = 0.0) -> Prediction:
    """A prediction of about the size of a real one."""
    return Prediction(
        session=session, run=1, seq=number, t_end_ns=now_ns, sentiment=sentiment, sentiment_smooth=0.0,
        emotions=dict.fromkeys(EMOTIONS, 1 / len(EMOTIONS)), confidence=0.5, gates={"vision": 1.0},
        age_ms={"vision": 1.0}, words=(Word("word", now_ns, now_ns),), model="bench",
    )  # fmt: skip
