"""Degrades sound, pictures and words before extraction, by known kinds and strengths of damage.

From it, training learns when a modality is unreliable, and `mien eval --damage` measures its effect. All randomness
comes from the caller's generator.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any

import cv2
import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from mien.messages import Float32, UInt8
from mien.models.data.corpora import Corpus, CorpusItem
from mien.models.data.datasets import Labels, RawRows
from mien.stream.sources.clip import read_sound, segment
from mien.stream.sources.source import SAMPLE_RATE

if TYPE_CHECKING:
    from mien.stream.offline.extractors import Extractors

Reals = npt.NDArray[np.floating[Any]]

# Kinds of each modality, and strengths from least to worst.
DAMAGE: dict[str, dict[str, tuple[float, ...]]] = {
    "audio": {
        "white": (20, 10, 5, 0, -5),  # dB of speech over noise
        "babble": (20, 10, 5, 0, -5),  # dB over a few other speakers
        "room": (0.3, 0.7, 1.5),  # s, reverberation time (RT60)
        "band": (3400, 2000, 1000),  # Hz, cut-off of the low-pass
        "clipping": (6, 15, 30),  # dB beyond full scale
        "codec": (24, 12, 6),  # kbit/s of Opus
    },
    "vision": {
        "pixels": (32, 24, 16, 12, 8),  # left along the face's side
        "blur": (0.03, 0.06, 0.1),  # standard deviation, as a fraction of the face's side
        "dark": (0.4, 0.15, 0.05),  # fraction of the light left, plus sensor noise
        "occlusion": (0.2, 0.4, 0.6),  # fraction of the face covered
        "side light": (0.5, 0.8, 0.95),  # how much darker one half is
    },
    "text": {
        "errors": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6),  # fraction of words wrong, missing or inserted
    },
}
UNIT = {
    "white": "dB", "babble": "dB", "room": "s", "band": "Hz", "clipping": "dB", "codec": "kbit/s",
    "pixels": "pixels", "blur": "of the side", "dark": "of the light", "occlusion": "of the face",
    "side light": "darker", "errors": "of the words",
}  # fmt: skip
VOICES = 4  # in babble
SHORTEST = SAMPLE_RATE // 10  # samples that a codec accepts


class Damaging(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which items get damaged copies.

    Attributes:
        share: fraction of items that get one copy, of random kind and strength. table: every kind and strength for
            each item.
    """

    share: Annotated[float, Meta(ge=0, le=1)] = 0.0
    table: bool = False
    seed: int = 1111


@lru_cache(8)
def _vocabulary(corpus: Corpus) -> list[str]:
    """All words of a corpus, repeated as often as they occur."""
    texts = [item.text for item in corpus.items[:2000] if item.text]
    return [w.strip('.,;:!?"()-').lower() or w for text in texts for w in text.split()] or ["the"]


def _voices(corpus: Corpus, item: CorpusItem, random: np.random.Generator) -> list[Float32]:
    """Clips of a few other speakers of the corpus."""
    spoken = [other for other in corpus.items if other.audio is not None and other.video is None]
    others = [other for other in spoken if other.speaker != item.speaker] or spoken
    chosen = [others[int(random.integers(len(others)))] for _ in range(VOICES)]
    return [read_sound(other.audio) for other in chosen if other.audio is not None]


def damaged_copies(
    extractors: Extractors, corpus: Corpus, item: CorpusItem, labels: Labels, options: Damaging
) -> Iterator[tuple[Labels, dict[str, RawRows]]]:
    """Labels and rows of an item's damaged copies; none if the item has several modalities."""
    modality = _only_modality(item)
    if modality is None or modality not in extractors.modalities or not (options.share or options.table):
        return
    random = seeded(f"damage {options.seed} {corpus.name} {item.id}")
    drawn = random.random() < options.share
    damages = [draw_damage(modality, random)] if drawn and not options.table else []
    if options.table:
        damages = [(kind, strength) for kind, all_of_it in DAMAGE[modality].items() for strength in all_of_it]
    for kind, strength in damages:
        duration_ns, text = labels.duration_ns, labels.text
        if modality == "audio":
            assert item.audio is not None
            sound = segment(read_sound(item.audio, extractors.tracks), item.start_s, item.end_s)
            voices = _voices(corpus, item, random) if kind == "babble" else ()
            rows = extractors.sound_rows(damage_sound(sound, kind, strength, random, voices))
        elif modality == "vision":
            assert corpus.images is not None
            assert item.image is not None
            rows = extractors.still_rows(damage_picture(corpus.images[item.image], kind, strength, random))
        else:
            text = " ".join(damage_words((item.text or "").split(), strength, _vocabulary(corpus), random))
            made, duration_ns, _ = extractors.rows(replace(item, text=text), corpus)
            rows = made["text"]
        yield (
            msgspec.structs.replace(
                labels, id=f"{labels.id}~{kind} {strength:g}", duration_ns=duration_ns, text=text, copy=True,
                damage=kind, strength=strength,
            ),
            {modality: rows},
        )  # fmt: skip


def seeded(name: str) -> np.random.Generator:
    """A generator for an item by its name: the same in any process and order."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))


def without_punctuation(words: Iterable[str]) -> list[str]:
    """Words as from a recogniser: in lower case, without punctuation; those of nothing else are left out."""
    return [word for word in (w.strip('.,;:!?"()-').lower() for w in words) if word]


def _only_modality(item: CorpusItem) -> str | None:
    if item.video is not None:
        return None
    if item.audio is not None:
        return "audio"
    return "vision" if item.image is not None else "text" if item.text else None


def draw_damage(modality: str, random: np.random.Generator) -> tuple[str, float]:
    """A random kind and strength; all kinds are equally likely."""
    kinds = list(DAMAGE[modality])
    kind = kinds[int(random.integers(len(kinds)))]
    strengths = DAMAGE[modality][kind]
    return kind, float(strengths[int(random.integers(len(strengths)))])


def damage_sound(
    samples: Float32, kind: str, strength: float, random: np.random.Generator, voices: Sequence[Float32] = ()
) -> Float32:
    """Mono sound at 16 kHz, shape (n,), with one kind of damage; of the same length, and within full scale.

    Args:
        voices: of other speakers, for babble.
    """
    if not len(samples) or (kind == "codec" and len(samples) < SHORTEST):
        return samples
    made: Reals
    if kind == "white":
        made = _mixed(samples, random.standard_normal(len(samples)), strength)
    elif kind == "babble":
        made = _mixed(samples, _babble(len(samples), voices, random), strength)
    elif kind == "room":
        made = _echo(samples, strength, random)
    elif kind == "band":
        spectrum = np.fft.rfft(samples)
        hertz = np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE)
        made = np.fft.irfft(spectrum / np.sqrt(1.0 + (hertz / strength) ** 16), len(samples))
    elif kind == "clipping":
        peak = float(np.quantile(np.abs(samples), 0.999)) + 1e-6
        made = np.clip(samples * (10.0 ** (strength / 20.0) / peak), -1.0, 1.0) * 0.5
    elif kind == "codec":
        made = _coded(samples, round(strength * 1000))
    else:
        raise ValueError(f"unknown damage of sound {kind!r}")
    return (made / max(1.0, float(np.abs(made).max()))).astype(np.float32)


def damage_picture(image: UInt8, kind: str, strength: float, random: np.random.Generator) -> UInt8:
    """A face crop, (H, W) grey or (H, W, 3), with one kind of damage; of the same size."""
    height, width = image.shape[:2]
    side = min(height, width)
    made: Reals
    if kind == "pixels":
        small = max(2, round(strength * width / side)), max(2, round(strength * height / side))
        made = cv2.resize(cv2.resize(image, small, interpolation=cv2.INTER_AREA), (width, height)).astype(np.float64)
    elif kind == "blur":
        made = cv2.GaussianBlur(image, (0, 0), strength * side).astype(np.float64)
    elif kind == "dark":
        made = image * strength + random.normal(0.0, 4.0, image.shape)
    elif kind == "occlusion":
        made = image.astype(np.float64)
        # From one of the sides, like a hand, a mask or hair.
        edge = int(random.integers(4))
        covered = round(strength * (height if edge < 2 else width))
        part = (slice(0, covered), slice(height - covered, height))[edge % 2]
        made[part if edge < 2 else (slice(None), part)] = random.uniform(20, 200)
    elif kind == "side light":
        ramp = 1.0 - strength * np.clip((np.arange(width) - 0.3 * width) / (0.4 * width), 0.0, 1.0)
        if random.random() < 0.5:
            ramp = ramp[::-1]
        made = image * (ramp[None, :] if image.ndim == 2 else ramp[None, :, None])
    else:
        raise ValueError(f"unknown damage of pictures {kind!r}")
    pixels: UInt8 = np.clip(np.rint(made), 0, 255).astype(np.uint8)
    return pixels


def damage_words(
    words: Sequence[str], rate: float, vocabulary: Sequence[str], random: np.random.Generator
) -> list[str]:
    """Words with recognition errors in a fraction `rate` of them.

    Two thirds are substitutions, a sixth deletions and a sixth insertions. At least one word is left, in lower case and
    without punctuation.
    """
    plain = without_punctuation(words) or list(words)
    made: list[str] = []
    for word in plain:
        fate = random.random() / rate if rate > 0 else 1.0
        if fate >= 1.0:
            made.append(word)
            continue
        other = vocabulary[int(random.integers(len(vocabulary)))]
        if fate < 4 / 6:
            made.append(other)
        elif fate >= 5 / 6:
            made += [word, other]
    return made or [vocabulary[int(random.integers(len(vocabulary)))]]


def _mixed(samples: Float32, noise: Reals, snr_db: float) -> Reals:
    """Speech plus noise. The power of speech is that of its louder half, to exclude pauses."""
    frames = samples[: len(samples) // 320 * 320].reshape(-1, 320).astype(np.float64)
    power = np.square(frames).mean(1) if len(frames) else np.square(samples.astype(np.float64))
    speech = float(power[power >= np.median(power)].mean())
    gain = np.sqrt(speech * 10.0 ** (-snr_db / 10.0) / max(float(np.mean(noise * noise)), 1e-20))
    mixed: Reals = samples + noise * gain
    return mixed


def _babble(size: int, voices: Sequence[Float32], random: np.random.Generator) -> Reals:
    total = np.zeros(size)
    for voice in voices:
        if not len(voice):
            continue
        level = np.sqrt(np.mean(np.square(voice.astype(np.float64)))) + 1e-6
        total += np.roll(np.resize(voice / level, size), int(random.integers(size)))
    return total if total.any() else random.standard_normal(size)


def _echo(samples: Float32, decay_s: float, random: np.random.Generator) -> Reals:
    t = np.arange(int(decay_s * SAMPLE_RATE)) / SAMPLE_RATE
    tail = random.normal(0.0, 1.0, len(t)) * 10.0 ** (-3.0 * t / decay_s)
    tail /= np.sqrt(np.sum(tail * tail))  # as loud as the direct sound
    tail[0] += 1.0
    size = len(samples) + len(tail) - 1
    wet: npt.NDArray[np.float64] = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(tail, size), size)
    return wet[: len(samples)]


def _coded(samples: Float32, bit_rate: int) -> Float32:
    """Encode with Opus and decode."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="ogg") as output:
        stream = output.add_stream("libopus", rate=48_000, layout="mono")
        stream.bit_rate = bit_rate
        frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), format="flt", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        resampler = av.AudioResampler("flt", "mono", 48_000, frame_size=960)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            for packet in stream.encode(part):
                output.mux(packet)
        for packet in stream.encode(None):
            output.mux(packet)
    file.seek(0)
    back = av.AudioResampler("flt", "mono", SAMPLE_RATE)
    with av.open(file) as coded:
        parts = [part.to_ndarray()[0] for f in coded.decode(audio=0) for part in back.resample(f)]
        parts += [part.to_ndarray()[0] for part in back.resample(None)]
    sound = np.concatenate(parts).astype(np.float32)
    return np.pad(sound, (0, max(0, len(samples) - len(sound))))[: len(samples)]
