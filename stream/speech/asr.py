"""Streaming speech recognition: sound in, step by step; words out, first tentative, then committed.

Each step decodes the last seconds again, but only if there is a voice, and only what follows the committed words.
All decisions depend on the time of the sound, never on the wall clock: the same steps give the same words.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from mien.clock import NS_PER_S
from mien.messages import Float32, Word
from mien.stream.speech.agreement import agreed, plain
from mien.stream.speech.alignment import INSTANT_S, groups, spread, uttered
from mien.stream.speech.certainty import Certainty, is_noise
from mien.stream.speech.repetition import MISLEADING, repetition
from mien.stream.speech.voice_activity import VoiceActivity
from mien.stream.speech.voiced_sound import VoicedSound
from mien.stream.speech.whisper import SAMPLE_RATE, DecodedWord, Hypothesis

NS_PER_SAMPLE = NS_PER_S // SAMPLE_RATE
END_SILENCE_S = 0.5  # this much silence ends an utterance
FORGET_SILENCE_S = 1.0  # words before this much silence no longer serve as context
LEAD_S = 0.5  # sound kept from before a voice is detected
TAIL_S = 0.3  # sound after the last voiced frame that belongs to the last word
LEAST_VOICE = 3  # frames of 32 ms: less is a click
WINDOW_S = 7.0  # 8 s with padding: up to here tiny.en costs the same
CONTEXT_S = 2.5  # sound of committed words kept as context
LONGEST_S = 14.0  # after this long without agreement the older half is committed as it is
HISTORY_S = 10.0  # of committed words kept
NO_SPEECH, UNSURE = 0.6, -1.0  # Whisper's own thresholds for "nothing is said here"
UNCLEAR_S = 3.0  # how long speech counts as unclear after it was not understood
HOPELESS = -1.6  # mean log probability below which a hypothesis is noise
LEAST_WORD_S = 0.09  # of voice for each word of a repeated passage
PAUSE_S = 0.5  # after a word, in which to look for a pause
MOST_CHECKS = 3  # times that a looping decoder is restarted after the loop
# What Whisper hallucinates on noise; accepted only with high confidence.
PHANTOMS = frozenset({"thankyou", "thanksforwatching", "you", "bye", "byebye", "thankyouforwatching"})
PHANTOM_DOUBT = -0.7


# Decodes a window of sound to words that continue a text; see `mien.stream.speech.whisper.Whisper.decode`.
Decode = Callable[[Float32, str], Hypothesis]


@dataclass(frozen=True)
class Recognised:
    """The result of a step.

    Attributes:
        t_end_ns: capture time up to which the sound was processed.
        words: committed words of the last HISTORY_S, then the tentative ones, in order of time. Until the utterance
            ends, a committed word may still become uncertain, or certain again.
        committed: the words that this step committed.
        unclear: there was speech recently, but no word was understood.
        last: end of stream; nothing follows.
    """

    t_end_ns: int
    words: tuple[Word, ...]
    committed: tuple[Word, ...]
    unclear: bool = False
    last: bool = False


class Recogniser:
    """Words from a stream of sound."""

    def __init__(self, decode: Decode, voice: VoiceActivity) -> None:
        self._decode_window = decode
        self._sound = VoicedSound(voice)
        self._committed: deque[Word] = deque()
        self._certainty = Certainty()
        self._unclear_ns: int | None = None  # when speech was last not understood
        self._t_end_ns = 0
        self._speaking = False
        self._reset()

    def step(self, samples: Float32, t_end_ns: int, continuous: bool = True) -> Recognised:
        """Process `samples` (n,), mono, 16 kHz, the last of which ends at `t_end_ns`.

        Args:
            continuous: False if there is a gap before them: everything said before it is committed first.
        """
        committed = [] if continuous else self._settle()
        if not continuous:
            self._reset()
        self._t_end_ns = t_end_ns
        self._sound.append(samples)
        if self._speaking or self._has_voice():
            self._speaking = True
            if self._sound.silence_s >= END_SILENCE_S:
                committed += self._finish()
            elif self._new_voice():
                committed += self._agree(self._decode_new())
        self._trim()
        return self._result(committed)

    def whole(self, samples: Float32, step_ms: int) -> Iterator[Recognised]:
        """The results of a live worker for a whole recording `samples` (n,), step by step.

        Time counts from its first sample. All earlier state is discarded.
        """
        self._reset()
        self._committed.clear()
        self._certainty, self._unclear_ns = Certainty(), None
        size = step_ms * SAMPLE_RATE // 1000
        for begin in range(0, len(samples), size):
            step = samples[begin : begin + size]
            yield self.step(step, (begin + len(step)) * NS_PER_SAMPLE, continuous=begin > 0)
        yield self.finish()

    def finish(self) -> Recognised:
        """End of stream: everything recognised is committed."""
        committed = self._finish() if self._speaking or self._has_voice(1) else []
        heard = replace(self._result(committed), last=True)
        self._reset()
        return heard

    def _reset(self) -> None:
        """Reset to the initial state. Committed words stay in the history."""
        self._sound.clear()
        self._decoded_until_s = 0.0  # end of the sound covered by the last hypothesis
        self._settled_until_s = 0.0  # everything before is final
        self._tentative: list[DecodedWord] = []  # times in seconds of the sound
        self._prefix: list[DecodedWord] = []  # committed words in the buffer
        self._speaking = False

    def _has_voice(self, frames: int = LEAST_VOICE) -> bool:
        """Whether the sound not yet settled has at least this many voiced frames of 32 ms."""
        return self._sound.voiced_frames(self._settled_until_s) >= frames

    def _new_voice(self) -> bool:
        """Whether there is speech that the last hypothesis does not cover."""
        return self._sound.voiced_until_s + TAIL_S > self._decoded_until_s

    def _decode_new(self) -> list[DecodedWord]:
        """The hypothesis for what comes after the committed words.

        A decoder caught in a loop gets the sound after the last repetition that had a voice, without any words as
        context: it continues there, with the next repetition or with what follows.
        """
        self._decoded_until_s = self._sound.end_s
        since_s, context = self._sound.begin_s, self._prefix
        words = list(self._prefix)
        for _ in range(1 + MOST_CHECKS):
            known = len(words)
            words += self._decode(since_s, context)
            count = self._count_voiced(words, known)
            looped = count < len(words)
            del words[count:]
            if not looped or (count == known and not context):
                break
            since_s, context = self._resume_point(words[-1]) if words else since_s, []
            if self._sound.voiced_frames(since_s) < LEAST_VOICE:
                break
        return self._voiced_words(words[len(self._prefix) :])

    def _decode(self, since_s: float, context: list[DecodedWord]) -> list[DecodedWord]:
        """The words decoded from `since_s` on after `context`, without likely hallucinations."""
        samples, since_s = self._sound.since(since_s)
        hypothesis = self._decode_window(samples, " ".join(word.text for word in context))
        if hypothesis.words:
            self._certainty.weigh(hypothesis.log_probability, len(samples) / SAMPLE_RATE)
        if hypothesis.no_speech > NO_SPEECH and hypothesis.log_probability < UNSURE:
            return []
        if hypothesis.log_probability < HOPELESS or (not context and is_noise(hypothesis.words, HOPELESS)):
            self._unclear_ns = self._t_end_ns
            return []
        words = hypothesis.words[: uttered(hypothesis.words)]
        text = "".join(plain(word.text) for word in words)
        if not context and text in PHANTOMS and hypothesis.log_probability < PHANTOM_DOUBT:
            return []
        return [replace(word, start_s=word.start_s + since_s, end_s=word.end_s + since_s) for word in words]

    def _count_voiced(self, words: list[DecodedWord], known: int) -> int:
        """Number of words before the first repetition of a passage without voice of its own; all if there is none."""
        texts = [word.text for word in words]
        checked = known
        while occurrences := repetition(texts, checked):
            for occurrence in occurrences[1:]:
                if occurrence.stop <= known:
                    continue
                start_s = max(words[occurrence.start].start_s, words[occurrence.start - 1].end_s)
                voiced_s = self._sound.voiced_s(start_s, words[occurrence.stop - 1].end_s)
                if voiced_s < LEAST_WORD_S * len(occurrence):
                    return max(occurrence.start, known)
            checked = occurrences[-1].stop
        return len(words)

    def _resume_point(self, word: DecodedWord) -> float:
        """Where to continue after a word: in the pause after it, if there is one."""
        span_s = self._sound.voiced_span(word.start_s, word.end_s)
        end_s = span_s[1] if span_s is not None else word.end_s
        pause_s = self._sound.pause_after(end_s, PAUSE_S)
        return end_s if pause_s is None else pause_s

    def _voiced_words(self, words: list[DecodedWord]) -> list[DecodedWord]:
        """The words during which there is a voice, trimmed of surrounding silence."""
        placed: list[DecodedWord] = []
        since_s = self._prefix[-1].end_s if self._prefix else 0.0
        for group in groups(words):
            start_s, end_s = group[0].start_s, group[-1].end_s
            start_s = max(since_s, min(start_s, since_s) if end_s - start_s < INSTANT_S else start_s)
            span_s = self._sound.voiced_span(start_s, max(start_s, end_s))
            if span_s is not None:
                placed += spread(group, *span_s)
                since_s = span_s[1]
        return placed

    def _agree(self, hypothesis: list[DecodedWord]) -> list[Word]:
        count = agreed([w.text for w in self._tentative], [w.text for w in hypothesis])
        self._tentative = hypothesis[count:]
        certain = hypothesis[:count]
        if certain and not self._tentative:
            # The decoder ends a sentence where the sound ends, whether it is complete or not.
            certain[-1] = replace(certain[-1], text=certain[-1].text.rstrip(".?!…") or certain[-1].text)
        return self._commit(certain)

    def _finish(self) -> list[Word]:
        """End of utterance: decode the rest if necessary, and commit it."""
        if self._new_voice():
            self._tentative = self._decode_new()
        return self._settle()

    def _settle(self) -> list[Word]:
        words = self._commit(self._tentative)
        self._tentative = []
        self._speaking = False
        self._committed = deque(self._certainty.settle(self._committed, self._t_end_ns))
        self._settled_until_s = self._sound.end_s
        return words

    def _commit(self, words: list[DecodedWord]) -> list[Word]:
        self._prefix += words
        committed = [self._word(word, committed=True) for word in words]
        self._committed.extend(committed)
        return committed

    def _word(self, word: DecodedWord, committed: bool) -> Word:
        # Counted back from the newest sound: device and session clocks drift apart over hours.
        start_ns, end_ns = (
            self._t_end_ns - round((self._sound.end_s - s) * NS_PER_S) for s in (word.start_s, word.end_s)
        )
        return Word(word.text, start_ns, end_ns, committed, word.probability)

    def _result(self, committed: list[Word]) -> Recognised:
        tentative = [self._word(word, committed=False) for word in self._tentative]
        judged = self._certainty.judged(self._committed, tentative, self._t_end_ns)
        count = len(self._committed)
        fresh = judged[count - len(committed) : count]
        self._committed = deque(judged[:count])
        while self._committed and self._committed[0].t_end_ns < self._t_end_ns - HISTORY_S * NS_PER_S:
            self._committed.popleft()
        unclear = self._unclear_ns is not None and self._t_end_ns - self._unclear_ns < UNCLEAR_S * NS_PER_S
        return Recognised(self._t_end_ns, (*self._committed, *judged[count:]), tuple(fresh), unclear)

    def _trim(self) -> None:
        """Drop sound that is no longer needed."""
        if not self._speaking:
            if self._sound.silence_s >= FORGET_SILENCE_S or not self._prefix:
                self._prefix = []
                self._sound.cut(self._sound.end_s - LEAD_S)
            return
        self._cut_repetition()
        length_s = len(self._sound.samples) / SAMPLE_RATE
        if length_s >= LONGEST_S:
            settled_s = self._sound.end_s - WINDOW_S / 2
            count = sum(word.end_s <= settled_s for word in self._tentative)
            self._commit(self._tentative[:count])
            self._tentative = self._tentative[count:]
            self._prefix = []
            self._sound.cut(settled_s)
        elif length_s > WINDOW_S and self._prefix:
            self._cut_words()

    def _cut_repetition(self) -> None:
        """Drop a repeated passage from the context: it would make the decoder repeat it again."""
        occurrences = repetition([word.text for word in self._prefix], 0, MISLEADING)
        if not occurrences:
            return
        end = occurrences[-1].stop
        pause_s = self._sound.pause_after(self._prefix[end - 1].end_s, PAUSE_S)
        following = [*self._prefix, *self._tentative][end:]
        if pause_s is not None and (not following or pause_s <= following[0].end_s):
            self._sound.cut(pause_s)
            self._prefix = self._prefix[end:]

    def _cut_words(self) -> None:
        """Cut before a committed word, keeping CONTEXT_S of committed sound, and after a sentence if possible."""
        until_s = self._prefix[-1].end_s - CONTEXT_S
        ends = [i for i in range(1, len(self._prefix)) if self._prefix[i].start_s <= until_s]
        if not ends:
            return
        sentences = [i for i in ends if self._prefix[i - 1].text.endswith((".", "?", "!"))]
        index = sentences[-1] if sentences else ends[-1]
        self._sound.cut((self._prefix[index - 1].end_s + self._prefix[index].start_s) / 2)
        self._prefix = self._prefix[index:]
