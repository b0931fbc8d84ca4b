"""Words recognised without speech: synthetic sounds through the text worker, and the words that it commits.

All sounds are synthesised from a seed: (n,) float32, mono, 16 kHz. Their level changes over time, from barely audible
to loud, since no recogniser is wrong at one level only.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from mien.clock import Clock
from mien.config import load_config
from mien.messages import Float32, Word
from mien.stream.bench.devices import write_wave
from mien.stream.modalities.base import create_modality
from mien.stream.sources.source import SAMPLE_RATE

_PIECE_S = 10.0  # duration of each level
_LEVELS_DB = (-12, -24, -36, -48, -60)  # peak, of full scale


def silence(count: int, _: np.random.Generator) -> Float32:
    """Digital silence."""
    return np.zeros(count, np.float32)


def hum(count: int, random: np.random.Generator) -> Float32:
    """Mains hum at 50 or 60 Hz with harmonics."""
    t_s = np.arange(count) / SAMPLE_RATE
    base_hz = random.choice([50.0, 60.0]) * (1 + 0.001 * random.standard_normal())
    shares = random.uniform(0.1, 1.0, 12) / np.arange(1, 13)
    phases = random.uniform(0, 2 * np.pi, 12)
    tones = (
        s * np.sin(2 * np.pi * base_hz * n * t_s + p) for n, s, p in zip(range(1, 13), shares, phases, strict=True)
    )
    return _peaked(sum(tones, np.zeros(count)))


def white(count: int, random: np.random.Generator) -> Float32:
    """White noise."""
    return _peaked(random.standard_normal(count))


def pink(count: int, random: np.random.Generator) -> Float32:
    """Pink noise: 3 dB less with every octave."""
    spectrum = np.fft.rfft(random.standard_normal(count))
    return _peaked(np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 1.0)), count))


def music(count: int, random: np.random.Generator) -> Float32:
    """Chords, a melody with vibrato, and a drum, at a random tempo."""
    beat = round(60 / random.uniform(70, 140) * SAMPLE_RATE)
    out = np.zeros(count + 4 * beat)
    root = int(random.integers(40, 52))
    for number, at in enumerate(range(0, count, beat)):
        if number % 4 == 0:
            degree = int(random.choice([0, 5, 7, 9]))
            for semitone in (0, int(random.choice([3, 4])), 7):
                _add(out, at, 0.3 * _note(root + degree + semitone, 4 * beat, random, partials=6))
        for half in (0, beat // 2):
            if random.random() < 0.6:
                note = root + 24 + int(random.choice([0, 2, 4, 7, 9, 12]))
                _add(out, at + half, 0.5 * _note(note, int(beat * random.uniform(0.4, 1.0)), random, partials=8))
        drum = random.standard_normal(beat // 4) * np.exp(-np.arange(beat // 4) / (0.02 * SAMPLE_RATE))
        _add(out, at, 0.4 * drum)
    return _peaked(out[:count])


def keyboard(count: int, random: np.random.Generator) -> Float32:
    """Typing: two clicks per key, with resonances of a few milliseconds, over room noise."""
    out = 0.003 * random.standard_normal(count + SAMPLE_RATE)
    at = 0
    while at < count:
        at += int(SAMPLE_RATE * random.exponential(0.16) + 0.04 * SAMPLE_RATE)
        for later_s, share in ((0.0, 1.0), (random.uniform(0.06, 0.12), 0.4)):
            begin = at + int(later_s * SAMPLE_RATE)
            if begin < count:
                _add(out, begin, share * random.uniform(0.4, 1.0) * _click(random))
    return _peaked(out[:count])


def coughs(count: int, random: np.random.Generator) -> Float32:
    """Coughs, one to four in a row: a burst of breath through a vocal tract, then a falling voice."""
    out = 0.002 * random.standard_normal(count + 2 * SAMPLE_RATE)
    at = int(random.uniform(0.2, 1.0) * SAMPLE_RATE)
    while at < count:
        for _ in range(int(random.integers(1, 5))):
            cough = _cough(random)
            _add(out, at, cough)
            at += len(cough) + int(random.uniform(0.03, 0.2) * SAMPLE_RATE)
        at += int(random.uniform(0.8, 3.0) * SAMPLE_RATE)
    return _peaked(out[:count])


SOUNDS: dict[str, Callable[[int, np.random.Generator], Float32]] = {
    "silence": silence, "hum": hum, "white": white, "pink": pink, "music": music, "keyboard": keyboard, "coughs": coughs
}  # fmt: skip


def synthesised(name: str, seconds: float, seed: int) -> Float32:
    """One of SOUNDS: pieces of ten seconds, each synthesised separately, cycling through the levels."""
    random = np.random.default_rng([seed, list(SOUNDS).index(name)])
    total = round(seconds * SAMPLE_RATE)
    size = round(_PIECE_S * SAMPLE_RATE)
    pieces = []
    for number, begin in enumerate(range(0, total, size)):
        level = 10 ** (_LEVELS_DB[number % len(_LEVELS_DB)] / 20)
        pieces.append(level * SOUNDS[name](min(size, total - begin), random))
    return np.concatenate(pieces).astype(np.float32)


def measure_silence(
    seconds: float, asr: str | None = None, report: Callable[[str, dict[str, Any]], None] = lambda *_: None
) -> dict[str, Any]:
    """Play each sound through the text worker, as fast as it can, and count the words.

    Args:
        seconds: of each sound. asr: as `text.asr`.
        report: called with each sound's name and figures.

    Returns:
        Per sound the result of `count_words`, `seconds`, and `work_s`, the time that it took.
    """
    figures: dict[str, Any] = {}
    for name in SOUNDS:
        begun = time.perf_counter()
        counted = count_words(synthesised(name, seconds, 0), asr)
        figures[name] = {"seconds": seconds, **counted, "work_s": round(time.perf_counter() - begun, 1)}
        report(name, figures[name])
    return figures


def count_words(sound: Float32, asr: str | None = None) -> dict[str, Any]:
    """Words that the text worker recognises in a sound.

    `words` committed, certain or not, `tentative` ones shown for a while, and the committed `text`.
    """
    committed: dict[int, Word] = {}
    tentative: set[tuple[str, int]] = set()
    for word in _words(sound, asr):
        if word.committed:
            committed[word.t_start_ns] = word
        else:
            tentative.add((word.text, word.t_start_ns))
    text = " ".join(word.text.strip() for word in committed.values())
    return {"words": len(committed), "tentative": len(tentative), "text": text}


def _words(sound: Float32, asr: str | None) -> Iterator[Word]:
    """All words of all messages of the text worker."""
    with tempfile.TemporaryDirectory(prefix="mien-silence-") as folder:
        path = Path(folder) / "sound.wav"
        write_wave(path, sound)
        config = load_config(overrides={"audio.source": str(path), "clip.fast": True, "text.asr": asr})
        with closing(create_modality("text", config, Clock())) as modality:
            modality.prepare()
            modality.start(0)
            for rows in modality.rows():
                if rows is not None:
                    yield from rows.words


def _peaked(sound: Any) -> Float32:
    peak = float(np.abs(sound).max(initial=0.0))
    return np.asarray(sound / peak if peak else sound, np.float32)


def _add(out: Any, at: int, sound: Any) -> None:
    until = min(len(out), at + len(sound))
    out[at:until] += sound[: until - at]


def _note(number: int, length: int, random: np.random.Generator, partials: int) -> Any:
    """A note of the equal-tempered scale (69 is 440 Hz), plucked or blown."""
    t_s = np.arange(length) / SAMPLE_RATE
    hz = 440.0 * 2 ** ((number - 69) / 12)
    bend = hz * 0.006 * np.sin(2 * np.pi * 5.5 * t_s) / (2 * np.pi * 5.5)
    tone = sum(
        (random.uniform(0.3, 1.0) / n * np.sin(2 * np.pi * n * (hz * t_s + bend)) for n in range(1, partials + 1)),
        np.zeros(length),
    )
    envelope = np.minimum(t_s / random.uniform(0.005, 0.08), 1.0) * np.exp(-t_s / random.uniform(0.2, 1.5))
    return tone * envelope


def _click(random: np.random.Generator) -> Any:
    t_s = np.arange(int(0.03 * SAMPLE_RATE)) / SAMPLE_RATE
    ring = sum(
        (np.sin(2 * np.pi * random.uniform(800, 6000) * t_s) * np.exp(-t_s / random.uniform(0.001, 0.006))
         for _ in range(5)),
        np.zeros(len(t_s)),
    )  # fmt: skip
    return ring + random.standard_normal(len(t_s)) * np.exp(-t_s / 0.002)


def _cough(random: np.random.Generator) -> Any:
    length = int(random.uniform(0.2, 0.45) * SAMPLE_RATE)
    t_s = np.arange(length) / SAMPLE_RATE
    burst = random.standard_normal(length) * np.exp(-t_s / random.uniform(0.03, 0.1))
    falling_hz = random.uniform(120, 350) * np.exp(-t_s / 0.5)
    pulses = np.diff(np.floor(np.cumsum(falling_hz) / SAMPLE_RATE), prepend=0.0)
    voice = pulses * np.clip((t_s - random.uniform(0.05, 0.12)) / 0.05, 0, 1) * np.exp(-t_s / 0.15)
    source = burst + random.uniform(0.0, 4.0) * voice
    spectrum = np.fft.rfft(source, 2 * length)
    hz = np.fft.rfftfreq(2 * length, 1 / SAMPLE_RATE)
    formants = ((random.uniform(500, 900), 120), (random.uniform(1100, 1800), 200), (random.uniform(2300, 3200), 400))
    gain = 0.05 + sum((width**2 / ((hz - centre) ** 2 + width**2) for centre, width in formants), np.zeros(len(hz)))
    return np.fft.irfft(spectrum * gain)[:length] * np.minimum(t_s / 0.005, 1.0)
