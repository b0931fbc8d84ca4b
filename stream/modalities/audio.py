"""The voice: acoustic features and encoder states at 50 Hz.

Row k describes the samples [320 k, 320 (k + 1)) and is computed from a window around their centre, so it is ready
22 ms after them. It also carries the voice encoder's newest state (one every 200 ms), relative to how this voice
usually sounds (`mien.models.voice.reference`). Silence is masked, never filled with zeros: `valid` is the voice
activity with hysteresis. The same extractor makes training data from files; rows are bit-identical however the audio
is chunked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from mien.assets import asset_path
from mien.assets.manifest import ASSETS
from mien.clock import Clock
from mien.config import AssetsConfig, Config
from mien.messages import Bool, FeatureWindow, Float32, ModalitySpec
from mien.models.baseline import Person, find_person, voice_at_rest
from mien.models.voice.columns import ENERGY, F0, N_MELS, PERIODICITY, ROW, STATE, VAD, WEIGHT, ZCR
from mien.models.voice.encoder import BLOCK, ENCODER_VERSION, mel_filters
from mien.models.voice.reference import Reference, RunningReference, compare
from mien.stream.modalities.base import Modality
from mien.stream.modalities.resting import Resting
from mien.stream.modalities.slots import SlotClock
from mien.stream.modalities.sourced import Detail, Hearing
from mien.stream.processes.plan import source_origin
from mien.stream.sources.audio import open_audio
from mien.stream.sources.source import NS_PER_SAMPLE, SAMPLE_RATE, AudioSource, Chunk
from mien.stream.speech.pitch import FLOOR, SPAN, yin
from mien.stream.speech.voice_activity import FRAME, Hangover, VoiceActivity
from mien.stream.speech.voice_states import VoiceStates

RATE_HZ = 50
HOP = SAMPLE_RATE // RATE_HZ  # 320 samples
N_FFT = 512  # 32 ms: resolves the harmonics of low voices
CENTRE = HOP // 2
BEFORE = SPAN // 2 - CENTRE  # 352 samples that a row needs before its span, and as many after

F0_REFERENCE_HZ = 150.0  # pitch is in octaves relative to this
VOICED = 0.5  # periodicity above which a pitch is trusted

ENCODER = "whisper-tiny.en"
SPEC = ModalitySpec(
    name="audio",
    dim=ROW,
    rate_hz=RATE_HZ,
    steps=250,
    extractor=f"mien-audio-4/mel64-yin-silero6/voice-{ENCODER_VERSION}-{ASSETS[ENCODER].files[0].sha256[:8]}",
)

ROWS_AT_ONCE = 256  # bounds memory on long files


class AudioRows(NamedTuple):
    """`values` (n, SPEC.dim) float32, finite; `valid` (n,): voice active."""

    values: Float32
    valid: Bool


class AudioExtractor:
    """Audio to rows. Push samples in chunks of any size; rows are returned as soon as their windows are complete.

    Columns: 64 log-mel bands (natural log of power), log energy, pitch in octaves from 150 Hz (unvoiced: the last
    voiced one), periodicity 0 to 1, zero-crossing rate 0 to 1, speech probability, 384 numbers of the voice encoder's
    state, and four on the reference (`mien.models.voice.columns`).

    Args:
        assets: where pretrained files are.
        reference: what to compare rows with; a running one learns from them. None: nothing, as for training data.

    Attributes:
        resting: receives rows before comparison, to measure a person at rest; None: no measurement.

    Raises:
        AssetError: the voice encoder is not available.
    """

    def __init__(
        self, assets: AssetsConfig | None = None, reference: Reference | RunningReference | None = None
    ) -> None:
        self.resting: Resting | None = None
        self._reference = reference
        self._vad = VoiceActivity()
        self._voice = VoiceStates(asset_path(ENCODER, assets or AssetsConfig()))
        self._hangover = Hangover()
        self._filters = mel_filters(N_MELS, N_FFT)
        self._window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)).astype(np.float32)
        self.reset()

    @property
    def reference(self) -> Reference | None:
        """The reference for the next row."""
        return self._reference.reference if isinstance(self._reference, RunningReference) else self._reference

    def reset(self, *, same_voice: bool = False) -> None:
        """Start a new stream: the next sample is sample 0 of row 0. The same voice keeps its running reference."""
        if isinstance(self._reference, RunningReference) and not same_voice:
            self._reference.reset()
        self._vad.reset()
        self._voice.reset()
        self._samples = np.zeros(BEFORE, np.float32)  # from `BEFORE` samples before the next row's span
        self._unheard = np.zeros(0, np.float32)  # samples that the VAD has not seen
        self._speech: list[float] = []  # per VAD frame from `_speech_begin` on
        self._speech_begin = 0
        self._count = 0  # samples pushed
        self._row = 0  # rows made
        self._f0 = 0.0
        self._hangover.reset()

    def push(self, samples: Float32) -> AudioRows:
        """Add samples, shape (n,), mono 16 kHz, finite; returns the rows completed by them, possibly none."""
        self._count += len(samples)
        self._samples = np.concatenate([self._samples, samples])
        self._listen(samples)
        self._voice.push(samples)
        return self._make(max(0, (len(self._samples) - SPAN) // HOP + 1))

    def finish(self) -> AudioRows:
        """The last rows, whose windows reach beyond the end, as if silence followed."""
        rows = self._count // HOP - self._row
        padding = np.zeros(BEFORE + FRAME, np.float32)
        self._samples = np.concatenate([self._samples, padding])
        self._listen(padding)
        return self._make(max(0, rows))

    def extract(self, samples: Float32) -> AudioRows:
        """All rows of a whole recording: n = len(samples) // 320."""
        self.reset()
        first, last = self.push(samples), self.finish()
        return AudioRows(np.concatenate([first.values, last.values]), np.concatenate([first.valid, last.valid]))

    def _listen(self, samples: Float32) -> None:
        unheard = np.concatenate([self._unheard, samples])
        whole = len(unheard) // FRAME * FRAME
        for begin in range(0, whole, FRAME):  # one at a time: batching would change the last bits
            self._speech.append(self._vad(unheard[begin : begin + FRAME]))
        self._unheard = unheard[whole:]

    def _make(self, count: int) -> AudioRows:
        values = np.empty((count, WEIGHT), np.float32)
        if count:
            frames = sliding_window_view(self._samples, SPAN)[::HOP]
            for begin in range(0, count, ROWS_AT_ONCE):
                end = min(begin + ROWS_AT_ONCE, count)
                values[begin:end, : PERIODICITY + 2] = self._acoustics(frames[begin:end])
        begins = np.arange(self._row, self._row + count) * HOP
        values[:, STATE] = self._voice.take(begins // BLOCK)
        centres = begins + CENTRE
        voiced = centres // FRAME - self._speech_begin
        values[:, VAD] = np.asarray(self._speech, np.float32)[voiced] if count else 0.0
        valid = self._hangover(values[:, VAD])
        self._samples = self._samples[count * HOP :].copy()
        self._row += count
        keep = (self._row * HOP + CENTRE) // FRAME
        del self._speech[: keep - self._speech_begin]
        self._speech_begin = max(keep, self._speech_begin)
        if self.resting is not None:
            self.resting.add(values, valid, count / SPEC.rate_hz)
        if isinstance(self._reference, RunningReference):
            return AudioRows(self._reference(values, valid), valid)
        return AudioRows(compare(values, self._reference), valid)

    def _acoustics(self, frames: Float32) -> Float32:
        """Frames (n, SPAN) to columns up to the zero-crossing rate.

        Computed row by row: no BLAS, whose bits depend on the number of rows.
        """
        rows = np.empty((len(frames), ZCR + 1), np.float32)
        middle = frames[:, (SPAN - N_FFT) // 2 : (SPAN + N_FFT) // 2]
        spectrum = np.fft.rfft(middle * self._window)
        power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
        rows[:, :N_MELS] = np.log(np.einsum("tf,mf->tm", power, self._filters) + FLOOR)
        rows[:, ENERGY] = np.log(np.mean(middle * middle, axis=1) + FLOOR)
        f0, periodicity = yin(frames)
        octaves = np.log2(f0 / F0_REFERENCE_HZ)
        known = np.concatenate([[True], periodicity >= VOICED])
        last = np.maximum.accumulate(np.where(known, np.arange(len(known)), 0))
        held = np.concatenate([np.array([self._f0], np.float32), octaves])[last]
        self._f0 = float(held[-1])
        rows[:, F0], rows[:, PERIODICITY] = held[1:], periodicity
        rows[:, ZCR] = np.mean(np.signbit(middle[:, 1:]) != np.signbit(middle[:, :-1]), axis=1)
        return rows


def voice_reference(person: Person | None = None) -> Reference | RunningReference:
    """The reference for a live voice: a person's baseline, or a running reference.

    Raises:
        ConfigError: the person's baseline cannot be used.
    """
    at_rest = person.voice(SPEC.extractor) if person is not None else None
    return RunningReference() if at_rest is None else at_rest


def voice_resting(seconds: float) -> Resting:
    """Measures a voice at rest from the rows of an `AudioExtractor`."""
    return Resting(seconds, lambda values, valid, _: voice_at_rest(values, valid, SPEC.extractor))


class Audio(Hearing):
    """A microphone's or a clip's audio, and its rows. One message per chunk."""

    spec = SPEC

    def __init__(
        self, config: Config, clock: Clock, open_source: Callable[[Config, Clock], AudioSource] = open_audio
    ) -> None:
        super().__init__(config, clock, open_source)
        self._slots = SlotClock(SPEC.rate_hz)
        self._pushed = self._made = 0  # samples and rows since the last gap
        self._begin_ns = 0  # capture time of its first sample
        self._read_ns = 0  # when the newest chunk was read
        self._level_db: float | None = None
        self._pieces: list[Chunk] = []
        self._voice = False
        self._is_changed = False

    def _change(self, config: Config) -> None:
        super()._change(config)
        self._is_changed = True

    def measure(self, seconds: float | None) -> None:
        self._extractor.resting = None if seconds is None else voice_resting(seconds)

    @property
    def resting(self) -> Resting | None:
        return self._extractor.resting

    def prepare(self) -> None:
        reference = voice_reference(find_person(self._config.person.name))
        self._extractor = AudioExtractor(self._config.assets, reference)
        super().prepare()

    def rows(self) -> Iterator[FeatureWindow | None]:
        while not (source := self._source).ended:
            chunk = source.read(timeout=0.1)
            if chunk is None:
                if not source.ended:
                    yield None
                continue
            if not chunk.continuous:
                # Another microphone changes the sound of the same voice.
                self._extractor.reset(same_voice=not self._is_changed)
                self._is_changed = False
                self._pushed = self._made = 0
            # From the newest chunk: a device's times follow the session's clock, while the sample count does not.
            self._begin_ns = chunk.t_start_ns - self._pushed * NS_PER_SAMPLE
            self._pushed += len(chunk.samples)
            power = float(np.mean(chunk.samples.astype(np.float64) ** 2))
            self._level_db = round(10.0 * float(np.log10(power + FLOOR)), 1)
            self._read_ns = chunk.read_ns
            if self._config.audio.share:
                self._pieces.append(chunk)
            yield self._place(self._extractor.push(chunk.samples))
        yield self._place(self._extractor.finish())

    def _detail(self, source: AudioSource) -> Detail:
        del source
        reference = self._extractor.reference
        return {
            "origin": source_origin(self._config.audio.source),
            "level_db": self._level_db,
            "voice": self._voice,
            "reference": "none" if reference is None else "given" if reference.given else "running",
            "reference_weight": 0.0 if reference is None else round(reference.weight, 3),
            "realigned_rows": self._slots.slips,
        }

    def take_sound(self) -> list[Chunk]:
        pieces, self._pieces = self._pieces, []
        return pieces

    def _place(self, made: AudioRows) -> FeatureWindow | None:
        """Rows at the centres of their slots; None if there are none yet."""
        count = len(made.values)
        centres = (np.arange(self._made, self._made + count) * HOP + CENTRE) * NS_PER_SAMPLE
        index, slots = self._slots.place(self._begin_ns + centres)
        self._made += count
        if not len(slots):
            return None
        valid = made.valid[index]
        self._voice = bool(valid[-1])
        t_start_ns, self._sent_ns = self._sent_ns, int(slots[-1] + 1) * self._slots.slot_ns
        return FeatureWindow(
            t_start_ns=min(t_start_ns, int(slots[0]) * self._slots.slot_ns),
            t_end_ns=self._sent_ns,
            values=made.values[index],
            valid=valid,
            times_ns=slots * self._slots.slot_ns + self._slots.slot_ns // 2,
            stamps={"read": self._read_ns},
        )


def create(config: Config, clock: Clock) -> Modality:
    """The audio modality, not yet prepared."""
    return Audio(config, clock)
