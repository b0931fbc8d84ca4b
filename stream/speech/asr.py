"""Streaming speech recognition: sound goes in step by step, words come out, first tentative and then committed.

A step hears the last seconds again, but only where there is a voice, and only what comes after the committed words.
All decisions are made on the time of the sound, never on the time of day: the same steps give the same words.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from mien.clock import NS_PER_S
from mien.messages import Float32, Word
from mien.stream.speech.agreement import agreed, plain, without_loop
from mien.stream.speech.alignment import INSTANT_S, groups, spread, uttered
from mien.stream.speech.voice_activity import FRAME, OFF, ON
from mien.stream.speech.whisper import SAMPLE_RATE, HeardWord, Hypothesis

NS_PER_SAMPLE = NS_PER_S // SAMPLE_RATE
END_SILENCE_S = 0.5  # an utterance is over after so much silence
FORGET_SILENCE_S = 1.0  # what was said before so much silence is no context any more
LEAD_S = 0.5  # sound kept before a voice is noticed
TAIL_S = 0.3  # sound after a voice that belongs to its last word
LEAST_VOICE = 3  # frames of 32 ms: less is a click
WINDOW_S = 7.0  # with the padding 8 s: up to here tiny.en costs the same
CONTEXT_S = 2.5  # sound of committed words that stays as context
LONGEST_S = 14.0  # where nothing agrees for so long, the older half is settled as it is
HISTORY_S = 10.0  # committed words that are kept
NO_SPEECH, UNSURE = 0.6, -1.0  # Whisper's own thresholds for "nothing is said here"
HOPELESS = -1.6  # mean log probability below which a hypothesis is noise
UNVOICED = 0.25  # a word during which the voice detector never rises above this was not said
VOICE_MARGIN_S = 0.2  # how wrong the time of a word may be
# What Whisper says on noise; believed only if it is sure.
PHANTOMS = frozenset({"thankyou", "thanksforwatching", "you", "bye", "byebye", "thankyouforwatching"})
PHANTOM_DOUBT = -0.7


class Decoder(Protocol):
    """What hears words in a window of sound; see `mien.stream.speech.whisper.Whisper.decode`."""

    def decode(self, samples: Float32, prefix: str = "", beam: int = 1) -> Hypothesis: ...


class VoiceDetector(Protocol):
    """Probability of voice in the next 512 samples; see `mien.stream.speech.voice_activity.VoiceActivity`."""

    def reset(self) -> None: ...

    def __call__(self, frame: Float32) -> float: ...


@dataclass(frozen=True)
class Heard:
    """What a step knows.

    Attributes:
        t_end_ns: capture time up to which the sound was processed.
        words: committed words of the last HISTORY_S, then the tentative ones, in order of time.
        committed: the words that this step committed.
    """

    t_end_ns: int
    words: tuple[Word, ...]
    committed: tuple[Word, ...]


class Recogniser:
    """Words from a stream of sound.

    Attributes:
        decoded: number of times the decoder was run.
    """

    def __init__(self, decoder: Decoder, voice: VoiceDetector, beam: int = 1) -> None:
        self._decoder = decoder
        self._voice = voice
        self._beam = beam
        self.decoded = 0
        self._said: deque[Word] = deque()  # committed
        self._t_end_ns = 0
        self._speaking = False
        self._forget()

    def step(self, samples: Float32, t_end_ns: int, continuous: bool = True) -> Heard:
        """Hear `samples` (n,), mono, 16 kHz, the last of which ends at `t_end_ns`.

        Args:
            continuous: False where sound is missing before them: what was said before is settled first.
        """
        committed = [] if continuous else self._settle()
        if not continuous:
            self._forget()
        self._t_end_ns = t_end_ns
        self._append(samples)
        if self._speaking or self._voiced_frames() >= LEAST_VOICE:
            self._speaking = True
            if self._silence_s() >= END_SILENCE_S:
                committed += self._finish()
            elif self._new_voice():
                committed += self._agree(self._hear())
        self._trim()
        return self._heard(committed)

    def whole(self, samples: Float32, step_ms: int) -> Iterator[Heard]:
        """What a live worker would know of a whole recording `samples` (n,), step by step; time counts from its first
        sample. Whatever was heard before is forgotten."""
        self._forget()
        self._said.clear()
        size = step_ms * SAMPLE_RATE // 1000
        for begin in range(0, len(samples), size):
            step = samples[begin : begin + size]
            yield self.step(step, (begin + len(step)) * NS_PER_SAMPLE, continuous=begin > 0)
        yield self.finish()

    def finish(self) -> Heard:
        """The stream is over: everything that was heard is committed."""
        committed = self._finish() if self._speaking or self._voiced_frames() else []
        heard = self._heard(committed)
        self._forget()
        return heard

    def _forget(self) -> None:
        """Begin anew, as if nothing had been heard yet. Committed words stay in the history."""
        self._voice.reset()
        self._audio = np.zeros(0, np.float32)
        self._begin = 0  # sample that the buffer begins with, a multiple of FRAME
        self._probabilities = np.zeros(0, np.float32)  # of voice, per frame of the buffer
        self._active = np.zeros(0, np.bool_)
        self._voiced_until = 0  # end of the last frame with voice
        self._decoded_until = 0  # end of the sound that the last hypothesis knows
        self._settled_until = 0  # everything before is settled
        self._tentative: list[HeardWord] = []  # seconds count from sample 0
        self._prefix: list[HeardWord] = []  # committed words in the buffer
        self._speaking = False

    @property
    def _end(self) -> int:
        return self._begin + len(self._audio)

    def _append(self, samples: Float32) -> None:
        self._audio = np.concatenate([self._audio, samples])
        frames = range(len(self._probabilities), len(self._audio) // FRAME)
        fresh = [self._voice(self._audio[i * FRAME : (i + 1) * FRAME]) for i in frames]
        active = bool(self._active[-1]) if len(self._active) else False
        for index, probability in zip(frames, fresh, strict=True):
            active = probability >= (OFF if active else ON)
            self._active = np.append(self._active, active)
            if active:
                self._voiced_until = self._begin + (index + 1) * FRAME
        self._probabilities = np.append(self._probabilities, np.array(fresh, np.float32))

    def _voiced_frames(self) -> int:
        """Frames with voice that are not settled."""
        first = max(0, (self._settled_until - self._begin) // FRAME)
        return int(self._active[first:].sum())

    def _silence_s(self) -> float:
        return (self._end - self._voiced_until) / SAMPLE_RATE

    def _new_voice(self) -> bool:
        """Is there sound of a voice that the last hypothesis does not know?"""
        return self._voiced_until + TAIL_S * SAMPLE_RATE > self._decoded_until

    def _hear(self) -> list[HeardWord]:
        """The hypothesis for what comes after the committed words."""
        self.decoded += 1
        hypothesis = self._decoder.decode(self._audio, " ".join(word.text for word in self._prefix), self._beam)
        self._decoded_until = self._end
        return self._believed(hypothesis)

    def _believed(self, hypothesis: Hypothesis) -> list[HeardWord]:
        """The words of a hypothesis that are no hallucination."""
        if hypothesis.no_speech > NO_SPEECH and hypothesis.log_probability < UNSURE:
            return []
        if hypothesis.log_probability < HOPELESS:
            return []
        words = hypothesis.words[: uttered(hypothesis.words)]
        known = [word.text for word in self._prefix]
        kept = without_loop([*known, *(word.text for word in words)], len(known))
        words = words[: kept - len(known)]
        said = "".join(plain(word.text) for word in words)
        if not self._prefix and said in PHANTOMS and hypothesis.log_probability < PHANTOM_DOUBT:
            return []
        offset_s = self._begin / SAMPLE_RATE
        placed: list[HeardWord] = []
        since_s = self._prefix[-1].end_s if self._prefix else 0.0
        for group in groups(words):
            start_s, end_s = group[0].start_s + offset_s, group[-1].end_s + offset_s
            start_s = max(since_s, min(start_s, since_s) if end_s - start_s < INSTANT_S else start_s)
            span_s = self._voiced_span(start_s, max(start_s, end_s))
            if span_s is not None:
                placed += spread(group, *span_s)
                since_s = span_s[1]
        return placed

    def _voiced_span(self, start_s: float, end_s: float) -> tuple[float, float] | None:
        """A span without the silence around it, as attention passes on only when the next word begins.

        None if there is no voice anywhere near.
        """
        first, last = self._frame(start_s), self._frame(end_s)
        voiced = np.flatnonzero(self._probabilities[first : last + 1] >= UNVOICED)
        if len(voiced):
            begin, end = first + int(voiced[0]), first + int(voiced[-1]) + 1
            start_s = max(start_s, (self._begin + begin * FRAME) / SAMPLE_RATE)
            return start_s, max(start_s, min(end_s, (self._begin + end * FRAME) / SAMPLE_RATE))
        first, last = self._frame(start_s - VOICE_MARGIN_S), self._frame(end_s + VOICE_MARGIN_S)
        near = self._probabilities[first : last + 1] >= UNVOICED
        return (start_s, end_s) if near.any() else None

    def _frame(self, t_s: float) -> int:
        return max(0, (int(t_s * SAMPLE_RATE) - self._begin) // FRAME)

    def _agree(self, hypothesis: list[HeardWord]) -> list[Word]:
        count = agreed([w.text for w in self._tentative], [w.text for w in hypothesis])
        self._tentative = hypothesis[count:]
        certain = hypothesis[:count]
        if certain and not self._tentative:
            # A sentence only seems to end where the sound does.
            certain[-1] = replace(certain[-1], text=certain[-1].text.rstrip(".?!…") or certain[-1].text)
        return self._commit(certain)

    def _finish(self) -> list[Word]:
        """The utterance is over: hear its end if need be, and commit it."""
        if self._new_voice():
            self._tentative = self._hear()
        return self._settle()

    def _settle(self) -> list[Word]:
        words = self._commit(self._tentative)
        self._tentative = []
        self._speaking = False
        self._settled_until = self._end
        return words

    def _commit(self, words: list[HeardWord]) -> list[Word]:
        self._prefix += words
        committed = [self._word(word, committed=True) for word in words]
        self._said.extend(committed)
        return committed

    def _word(self, word: HeardWord, committed: bool) -> Word:
        # Counted back from the newest sound: a device's clock and the session's drift apart over hours.
        end_s = self._end / SAMPLE_RATE
        start_ns, end_ns = (self._t_end_ns - round((end_s - s) * NS_PER_S) for s in (word.start_s, word.end_s))
        return Word(word.text, start_ns, end_ns, committed, word.probability)

    def _heard(self, committed: list[Word]) -> Heard:
        while self._said and self._said[0].t_end_ns < self._t_end_ns - HISTORY_S * NS_PER_S:
            self._said.popleft()
        tentative = tuple(self._word(word, committed=False) for word in self._tentative)
        return Heard(self._t_end_ns, tuple(self._said) + tentative, tuple(committed))

    def _trim(self) -> None:
        """Let go of the sound that is not needed any more."""
        if not self._speaking:
            if self._silence_s() >= FORGET_SILENCE_S or not self._prefix:
                self._prefix = []
                self._cut(self._end / SAMPLE_RATE - LEAD_S)
            return
        length_s = len(self._audio) / SAMPLE_RATE
        if length_s >= LONGEST_S:
            settled_s = self._end / SAMPLE_RATE - WINDOW_S / 2
            count = sum(word.end_s <= settled_s for word in self._tentative)
            self._commit(self._tentative[:count])
            self._tentative = self._tentative[count:]
            self._prefix = []
            self._cut(settled_s)
        elif length_s > WINDOW_S and self._prefix:
            self._cut_words()

    def _cut_words(self) -> None:
        """Cut before a committed word, so that CONTEXT_S of committed sound stay, and after a sentence if possible."""
        until_s = self._prefix[-1].end_s - CONTEXT_S
        ends = [i for i in range(1, len(self._prefix)) if self._prefix[i].start_s <= until_s]
        if not ends:
            return
        sentences = [i for i in ends if self._prefix[i - 1].text.endswith((".", "?", "!"))]
        index = sentences[-1] if sentences else ends[-1]
        self._cut((self._prefix[index - 1].end_s + self._prefix[index].start_s) / 2)
        self._prefix = self._prefix[index:]

    def _cut(self, at_s: float) -> None:
        frames = min(int(at_s * SAMPLE_RATE - self._begin) // FRAME, len(self._probabilities))
        if frames <= 0:
            return
        self._audio = self._audio[frames * FRAME :]
        self._probabilities = self._probabilities[frames:]
        self._active = self._active[frames:]
        self._begin += frames * FRAME
