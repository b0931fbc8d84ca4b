"""What a decoded JSON message must hold besides its types: names, counts, times and numbers within reason.

JSON knows integers of any size and objects of any number of keys. Readers of a message divide, add, keep and
show what is in it, so it is bounded here, once, where it enters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence, Sized

from mien.errors import WireError
from mien.messages import SENTIMENT_MAX, About, Cue, Prediction, Span, Status

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
# Years 1970 to about 2242; also keeps every sum of two times inside int64.
MAX_TIME_NS = (1 << 63) - (1 << 59)
MAX_COUNT = (1 << 53) - 1  # integers that every JSON reader keeps exactly
MAX_WORDS = 512
MAX_WORD_CHARS = 128
_MAX_KEYS = 64
_MAX_NAME_CHARS = 64
_MAX_SPANS = 4096
_MAX_NUMBER = 1e15


def check_count(name: str, *values: int) -> None:
    """Refuse numbers that count nothing: below 0, or beyond what JSON readers keep exactly."""
    for value in values:
        if not 0 <= value <= MAX_COUNT:
            raise WireError(f"malformed: {name} is out of range")


def check_time(name: str, *times_ns: int) -> None:
    """Refuse times that are no session times, or run backwards."""
    earliest_ns = 0
    for t_ns in times_ns:
        if not earliest_ns <= t_ns <= MAX_TIME_NS:
            raise WireError(f"time: {name} is out of range")
        earliest_ns = t_ns


def check_words(words: Iterable[tuple[str, int, int, float]]) -> None:
    """Refuse words that are too long or have no time; each is text, start, end in ns, probability."""
    for text, start_ns, end_ns, probability in words:
        if len(text) > MAX_WORD_CHARS:
            raise WireError("oversized: a word")
        if not 0 <= start_ns <= end_ns <= MAX_TIME_NS:
            raise WireError("time: of a word")
        if not 0.0 <= probability <= 1.0:
            raise WireError("malformed: probability of a word")


def check_phrases(phrases: Sequence[tuple[int, int, float, str]]) -> None:
    """Refuse phrases that are too many or have no time; each is start, end in ns, sentiment, emotion."""
    _check_sizes(phrases)
    for start_ns, end_ns, sentiment, emotion in phrases:
        check_time("a phrase", start_ns, end_ns)
        if not abs(sentiment) <= SENTIMENT_MAX + 1e-3:
            raise WireError("malformed: sentiment of a phrase is out of range")
        if len(emotion) > _MAX_NAME_CHARS:
            raise WireError("oversized: emotion of a phrase")


def check_prediction(message: Prediction) -> tuple[str, str]:
    """The session, and the last part of the topic. Raises WireError."""
    check_count("run or seq", message.run, message.seq)
    check_time("t_end_ns", message.t_end_ns)
    _check_sizes(message.emotions or (), message.gates, message.age_ms, message.absent, message.latency, message.inputs)
    if len(message.words) > MAX_WORDS:
        raise WireError("oversized: words")
    check_words((word.text, word.t_start_ns, word.t_end_ns, word.probability) for word in message.words)
    check_phrases([(p.t_start_ns, p.t_end_ns, p.sentiment, p.emotion) for p in message.phrases])
    for value in (message.sentiment, message.sentiment_smooth):
        if value is not None and not abs(value) <= SENTIMENT_MAX + 1e-3:
            raise WireError("malformed: sentiment is out of range")
    if message.emotions is not None and not message.emotions:
        raise WireError("malformed: no emotions")
    shares = [*(message.emotions or {}).values(), *message.gates.values(), message.confidence or 0.0]
    if not all(-1e-3 <= share <= 1.001 for share in shares):
        raise WireError("malformed: a probability or share is out of range")
    _check_numbers(*message.age_ms.values(), *message.latency.values())
    _check_inputs(message.inputs)
    return message.session, ""


def check_status(message: Status) -> tuple[str, str]:
    """The session, and the last part of the topic. Raises WireError."""
    check_count("run or pid", message.run, message.pid)
    check_count("a number of drops", *message.drops.values())
    check_time("t_ns", message.t_ns)
    _check_sizes(message.drops, message.detail)
    if not NAME.fullmatch(message.worker):
        raise WireError("malformed: a name of a worker")
    _check_numbers(message.fps, message.lag_ms, message.cpu_percent, message.rss_mb)
    _check_numbers(*(value for value in message.detail.values() if isinstance(value, int | float)))
    return message.session, message.worker


def check_about(message: About) -> tuple[str, str]:
    """The session, and the last part of the topic. Raises WireError."""
    check_count("run", message.run)
    check_time("t_ns", message.t_ns)
    _check_sizes(message.config, message.versions, message.modalities)
    for spec in message.modalities:
        check_count("dim or steps", spec.dim, spec.steps)
        _check_numbers(spec.rate_hz)
    return message.session, ""


def check_cue(message: Cue) -> tuple[str, str]:
    """The session, and the last part of the topic. Raises WireError."""
    check_count("seq", message.seq)
    check_time("t_end_ns", message.t_end_ns)
    _check_sizes(message.inputs, message.absent)
    _check_inputs(message.inputs)
    if message.smoothed is not None:
        if not abs(message.smoothed[0]) <= SENTIMENT_MAX + 1e-3:
            raise WireError("malformed: sentiment is out of range")
        check_time("smoothed", message.smoothed[1])
    return message.session, ""


def _check_sizes(*parts: Sized) -> None:
    if any(len(part) > _MAX_KEYS for part in parts):
        raise WireError(f"oversized: more than {_MAX_KEYS} entries")


def _check_numbers(*values: float | None) -> None:
    if not all(value is None or abs(value) <= _MAX_NUMBER for value in values):
        raise WireError("malformed: a number is out of range")


def _check_inputs(inputs: Mapping[str, Sequence[Span]]) -> None:
    for spans in inputs.values():
        if len(spans) > _MAX_SPANS:
            raise WireError("oversized: inputs")
        for run, first, last in spans:
            check_count("a span of inputs", run, first, last)
