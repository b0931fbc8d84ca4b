"""Whisper on short windows: words with times for a few seconds of sound.

Whisper was trained on windows of 30 s, and faster-whisper pads every call to that. Here the CTranslate2 model gets
the window and a second of silence: a fifth of the work. Without any padding it breaks down.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import tokenizers
from faster_whisper.feature_extractor import FeatureExtractor
from faster_whisper.tokenizer import _LANGUAGE_CODES, Tokenizer

from mien.errors import AssetError, ConfigError
from mien.messages import Float32

SAMPLE_RATE = 16_000
FRAMES_PER_S = 100  # mel frames
TOKENS_PER_S = 50  # the encoder halves them
PADDING_S = 1.0
MAX_LENGTH = 448  # tokens of prompt and output together: the decoder's number of positions
TOKENS_PER_SPOKEN_S = 7  # faster than any speech: a longer output is a loop
LOOP_NGRAM = 5


@dataclass(frozen=True)
class DecodedWord:
    """A word of a hypothesis. Seconds count from the window's first sample."""

    text: str
    start_s: float
    end_s: float
    probability: float


@dataclass(frozen=True)
class Hypothesis:
    """What was decoded after the prefix.

    Attributes:
        words: in order, punctuation attached to its word.
        no_speech: probability that there is no speech in the window.
        log_probability: mean over the tokens after the prefix; 0 if there are none.
    """

    words: tuple[DecodedWord, ...]
    no_speech: float = 0.0
    log_probability: float = 0.0


class Whisper:
    """A Whisper model in CTranslate2's format.

    Args:
        folder: model.bin, config.json, tokenizer.json, vocabulary.
        language: a code such as "en".
        device: "auto" is CUDA where CTranslate2 finds it, else the CPU.

    Raises:
        AssetError: the folder contains no model that CTranslate2 can read.
        ConfigError: the model does not support the language; no such device or compute type.
    """

    def __init__(
        self,
        folder: Path,
        language: str = "en",
        device: str = "auto",
        compute_type: str = "int8",
        threads: int = 1,
    ) -> None:
        for name in ("model.bin", "config.json", "tokenizer.json"):
            if not (folder / name).is_file():
                raise AssetError(f"{folder} is not a CTranslate2 Whisper model: it lacks {name}; correct `text.asr`")
        try:
            self._model = ctranslate2.models.Whisper(
                str(folder), device=device, compute_type=compute_type, intra_threads=threads, inter_threads=1
            )
        except ValueError as error:
            raise ConfigError(f"`text.device` and `text.compute_type`: {error}") from error
        except RuntimeError as error:
            raise AssetError(f"CTranslate2 cannot read the model in {folder}: {error}") from error
        multilingual = self._model.is_multilingual
        if language not in _LANGUAGE_CODES or (not multilingual and language != "en"):
            known = "a code such as `en` or `de`" if multilingual else "English only (`en`)"
            raise ConfigError(f"`text.language` is `{language}`, but this speech model knows {known}")
        self._tokenizer = Tokenizer(
            tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")),
            multilingual,
            task="transcribe",
            language=language,
        )
        self._features = FeatureExtractor(feature_size=self._model.n_mels)
        self._suppressed = [-1, *self._tokenizer.non_speech_tokens]
        # Measured: below 8 s tiny.en loses words, base only below 5 s. Told apart by the width of the encoder.
        self.least_s = 5.0
        self.least_s = 8.0 if self._encode(np.zeros(SAMPLE_RATE, np.float32)).shape[-1] <= 384 else 5.0
        self.device = self._model.device

    def decode(self, samples: Float32, prefix: str = "") -> Hypothesis:
        """Transcribe `samples` (n,), mono, 16 kHz, at most 29 s, after the words of `prefix`.

        `prefix` is the known transcript of its beginning: the model continues it, which costs less than decoding it
        again and never contradicts it.
        """
        encoded = self._encode(samples)
        known = self._tokenizer.encode(" " + prefix.strip()) if prefix else []
        generated, no_speech = self._generate(encoded, known, len(samples) / SAMPLE_RATE)
        if not generated:
            return Hypothesis((), no_speech)
        words, log_probability = self._align(encoded, known, generated, len(samples) * FRAMES_PER_S // SAMPLE_RATE)
        return Hypothesis(words, no_speech, log_probability)

    def _encode(self, samples: Float32) -> Any:
        """Encoder states, shape (1, frames / 2, width), on the model's device."""
        size = round(max(len(samples) + PADDING_S * SAMPLE_RATE, self.least_s * SAMPLE_RATE))
        padded = np.pad(samples, (0, size - len(samples)))
        mel = self._features(padded, padding=0)  # shape (mels, frames)
        storage = ctranslate2.StorageView.from_array(np.ascontiguousarray(mel[None], dtype=np.float32))
        return self._model.encode(storage)

    def _generate(self, encoded: Any, known: list[int], seconds: float) -> tuple[list[int], float]:
        """Tokens after the known ones, P(no speech)."""
        prompt = [*self._tokenizer.sot_sequence, self._tokenizer.no_timestamps, *known]
        most = min(8 + round(TOKENS_PER_SPOKEN_S * seconds), MAX_LENGTH - len(prompt))
        for ngram in (0, LOOP_NGRAM):
            result = self._model.generate(
                encoded,
                [prompt],
                beam_size=1,
                max_length=len(prompt) + most,
                no_repeat_ngram_size=ngram,
                suppress_blank=not known,  # after a prefix, an empty continuation is valid
                suppress_tokens=self._suppressed,
                return_no_speech_prob=True,
            )[0]
            # CTranslate2's output includes the given prefix.
            generated = [token for token in result.sequences_ids[0] if token < self._tokenizer.eot][len(known) :]
            if len(generated) < most - 1:
                break
        return generated, result.no_speech_prob

    def _align(
        self, encoded: Any, known: list[int], generated: list[int], frames: int
    ) -> tuple[tuple[DecodedWord, ...], float]:
        """Words of `generated`, with their times, and the mean log probability of their tokens.

        A word ends when the decoder's attention moves to the next.
        """
        tokens = known + generated
        aligned = self._model.align(encoded, self._tokenizer.sot_sequence, [tokens], max(frames, 2))[0]
        texts, groups = self._tokenizer.split_to_word_tokens([*tokens, self._tokenizer.eot])
        text_index, frame_index = np.array(aligned.alignments).T
        first = np.r_[True, np.diff(text_index) > 0]  # the frame at which each token begins
        starts_s = frame_index[first] / TOKENS_PER_S
        words: list[DecodedWord] = []
        position = 0
        for text, group in zip(texts[:-1], groups[:-1], strict=True):
            begin, position = position, position + len(group)
            if begin < len(known):
                continue
            probability = float(np.mean(aligned.text_token_probs[begin:position]))
            end_s = float(starts_s[min(position, len(starts_s) - 1)])
            word = DecodedWord(text, float(starts_s[min(begin, len(starts_s) - 1)]), end_s, probability)
            words = _joined(words, word)
        log_probability = float(np.mean(np.log(np.maximum(aligned.text_token_probs[len(known) :], 1e-6))))
        return tuple(words), log_probability


def _joined(words: list[DecodedWord], word: DecodedWord) -> list[DecodedWord]:
    """`words` with one appended; punctuation and parts without a leading space belong to the previous word."""
    text = word.text.strip()
    if not text:
        return words
    mark = not text.strip(string.punctuation)
    if mark and not words:
        return words  # it belongs to the prefix
    if words and (mark or not word.text.startswith(" ")):
        last = words[-1]
        return [*words[:-1], DecodedWord(last.text + text, last.start_s, last.end_s, last.probability)]
    return [*words, DecodedWord(text, word.start_s, word.end_s, word.probability)]
