"""Messages to bytes and back, as `stream/protocol.md` specifies them.

Every message is three frames: topic | header | payload. Decoding trusts nothing: whatever does not follow the protocol
raises `WireError` with a short cause, which the caller counts. Nothing here blocks, logs, or keeps state.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import TypeVar

import msgspec
import numpy as np

from mien.errors import WireError
from mien.messages import About, Bool, Cue, FeatureWindow, Float32, Int64, Phrase, Prediction, Status, Word
from mien.stream.bus.limits import (
    MAX_COUNT,
    MAX_TIME_NS,
    MAX_WORDS,
    NAME,
    check_about,
    check_cue,
    check_phrases,
    check_prediction,
    check_status,
    check_time,
    check_words,
)

VERSION = 1
VERSION_BYTE = bytes([VERSION])

MAX_ROWS = 4096  # 80 s of audio rows: far more than a worker ever sends at once
MAX_DIM = 4096
MAX_PAYLOAD_BYTES = 4 << 20
MAX_HEADER_BYTES = 256 << 10
MAX_SETTLE_NS = 5_000_000_000  # after its end, from when on a message counts at the latest
_FLOAT32 = np.dtype("<f4")
_SLACK_US = 2_000_000  # a row may lie so far after the span of its message; a long word's even further before

Frames = list[bytes]
_JsonMessage = TypeVar("_JsonMessage", Prediction, Status, About, Cue)
_Message = TypeVar("_Message")


class FeatureHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=False, omit_defaults=True):
    """The msgpack map of a features message; fields as in `mien.FeatureWindow`."""

    session: str
    modality: str
    run: int
    seq: int
    t_start_ns: int
    t_end_ns: int
    extractor: str
    rows: int
    dim: int
    valid: bytes
    offsets_us: list[int] | None = None
    words: list[tuple[str, int, int, bool, float]] = []
    uncertain: bytes = b""
    phrases: list[tuple[int, int, float, str]] = []
    reason: str = ""
    stamps: dict[str, int] = {}
    counts_from_ns: int = 0

    def said(self, by_ns: int = 0) -> tuple[Word, ...]:
        """The words as `mien.FeatureWindow` has them, their times moved by `by_ns`.

        `uncertain` holds one bit a word, or nothing: all are certain.
        """
        # numpy makes up bits where there are none to unpack
        bits = _unpacked(self.uncertain, len(self.words)).tolist() if self.uncertain else [False] * len(self.words)
        return tuple(
            Word(text, start_ns + by_ns, end_ns + by_ns, committed, probability, is_uncertain)
            for (text, start_ns, end_ns, committed, probability), is_uncertain in zip(self.words, bits, strict=True)
        )

    def read(self, by_ns: int = 0) -> tuple[Phrase, ...]:
        """The phrases, likewise."""
        return tuple(
            Phrase(start_ns + by_ns, end_ns + by_ns, sentiment, emotion)
            for start_ns, end_ns, sentiment, emotion in self.phrases
        )


_encode_msgpack = msgspec.msgpack.Encoder().encode
_decode_features = msgspec.msgpack.Decoder(FeatureHeader).decode
_encode_json = msgspec.json.Encoder().encode


def topic(kind: str, session: str, part: str = "") -> bytes:
    """The topic of a message.

    `features/<session>/<modality>`, `prediction/<session>/`, `status/<session>/<worker>`, `about/<session>/`,
    `cue/<session>/`.

    The slash at the end lets a subscriber ask for one session without also getting those whose names begin alike.
    """
    return f"{kind}/{session}/{part}".encode()


def sent_times_ns(times_ns: Int64, t_start_ns: int, t_end_ns: int) -> Int64:
    """The times of rows as their reader has them: in whole microseconds after the start, unless they are evenly spread.

    Where a row lies on the model's time axis hangs on it, so whatever stays in one process takes these times too.
    """
    if np.array_equal(times_ns, even_times_ns(t_start_ns, t_end_ns, len(times_ns))):
        return times_ns
    return t_start_ns + (times_ns - t_start_ns) // 1000 * 1000


def even_times_ns(t_start_ns: int, t_end_ns: int, rows: int) -> Int64:
    """Capture times of rows that fill a span evenly, each at the start of its share. Shape (rows,)."""
    if rows == 1:
        return np.array([t_start_ns], np.int64)
    return t_start_ns + np.arange(rows, dtype=np.int64) * ((t_end_ns - t_start_ns) // max(rows, 1))


def encode_features(window: FeatureWindow) -> Frames:
    """A features message. Times are sent only if they are not evenly spaced from `t_start_ns`, in microseconds."""
    rows, dim = window.values.shape
    even = np.array_equal(window.times_ns, even_times_ns(window.t_start_ns, window.t_end_ns, rows))
    header = FeatureHeader(
        session=window.session,
        modality=window.modality,
        run=window.run,
        seq=window.seq,
        t_start_ns=window.t_start_ns,
        t_end_ns=window.t_end_ns,
        extractor=window.extractor,
        rows=rows,
        dim=dim,
        valid=np.packbits(window.valid, bitorder="little").tobytes(),
        offsets_us=None if even else ((window.times_ns - window.t_start_ns) // 1000).tolist(),
        words=[(w.text, w.t_start_ns, w.t_end_ns, w.committed, w.probability) for w in window.words],
        uncertain=_bits(word.uncertain for word in window.words),
        phrases=[(p.t_start_ns, p.t_end_ns, p.sentiment, p.emotion) for p in window.phrases],
        reason=window.reason,
        stamps=window.stamps,
        counts_from_ns=window.counts_from_ns,
    )
    values = np.ascontiguousarray(window.values, dtype="<f4")
    return [
        topic("features", window.session, window.modality),
        VERSION_BYTE + _encode_msgpack(header),
        values.tobytes(),
    ]


def decode_features(frames: Sequence[bytes]) -> FeatureWindow:
    """The features of a message.

    Raises:
        WireError: any deviation from the protocol; its text begins with a cause of one word.
    """
    return features_of(*decode_feature_header(frames))


def features_of(header: FeatureHeader, payload: bytes, by_ns: int = 0) -> FeatureWindow:
    """The features of a header that was checked, and its payload, with all times moved by `by_ns`.

    Raises:
        WireError: as `decode_features`.
    """
    if by_ns:
        check_time("in our time", header.t_start_ns + by_ns, header.t_end_ns + by_ns)
    values: Float32 = np.ndarray((header.rows, header.dim), _FLOAT32, payload)
    if b"\0" in np.isfinite(values).tobytes():  # `all` takes twice as long
        raise WireError("nonfinite: a value is NaN or infinite")
    return FeatureWindow(
        session=header.session,
        modality=header.modality,
        run=header.run,
        seq=header.seq,
        t_start_ns=header.t_start_ns + by_ns,
        t_end_ns=header.t_end_ns + by_ns,
        extractor=header.extractor,
        values=values if sys.byteorder == "little" else values.astype(np.float32),
        valid=_unpacked(header.valid, header.rows),
        times_ns=_times(header, by_ns),
        words=header.said(by_ns) if header.words else (),
        phrases=header.read(by_ns) if header.phrases else (),
        stamps={stage: t_ns + by_ns for stage, t_ns in header.stamps.items()} if by_ns else header.stamps,
        reason=header.reason,
        counts_from_ns=header.counts_from_ns and header.counts_from_ns + by_ns,
    )


def decode_feature_header(frames: Sequence[bytes]) -> tuple[FeatureHeader, bytes]:
    """The header of a features message, checked, and its payload, of which only the length is.

    Raises:
        WireError: as `decode_features`.
    """
    header_bytes, payload = open_frames(frames)
    header = parse(_decode_features, header_bytes)
    _check_header(header)
    _check_topic(frames[0], "features", header.session, header.modality)
    if len(payload) != header.rows * header.dim * 4:
        raise WireError("truncated: payload does not hold rows x dim float32")
    if len(header.valid) != (header.rows + 7) // 8:
        raise WireError("truncated: valid does not hold one bit a row")
    return header, payload


def _json_codec(
    kind: str, message_type: type[_JsonMessage], check: Callable[[_JsonMessage], tuple[str, str]]
) -> tuple[Callable[[_JsonMessage], Frames], Callable[[Sequence[bytes]], _JsonMessage]]:
    """How messages of a kind are encoded, and decoded, which raises WireError at any deviation from the protocol.

    Args:
        check: bounds a message's content, and returns the session and the last part of its topic.
    """
    decode_json = msgspec.json.Decoder(message_type).decode

    def encode(message: _JsonMessage) -> Frames:
        part = message.worker if isinstance(message, Status) else ""
        return [topic(kind, message.session, part), VERSION_BYTE, _encode_json(message)]

    def decode(frames: Sequence[bytes]) -> _JsonMessage:
        message = parse(decode_json, open_frames(frames)[1])
        _check_topic(frames[0], kind, *check(message))
        return message

    return encode, decode


def json_schema() -> dict[str, object]:
    """JSON Schema (2020-12) of the payloads of prediction, status and about messages."""
    messages, components = msgspec.json.schema_components([Prediction, Status, About], ref_template="#/$defs/{name}")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"mien messages, version {VERSION}",
        "anyOf": list(messages),
        "$defs": components,
    }


def open_frames(frames: Sequence[bytes]) -> tuple[bytes, bytes]:
    """A message's header without its version byte, and its payload.

    Raises:
        WireError: it is not of three frames, of another version, or its payload is too large.
    """
    if len(frames) != 3:
        raise WireError(f"malformed: {len(frames)} frames instead of 3")
    header, payload = frames[1], frames[2]
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise WireError("oversized: payload")
    if not header:
        raise WireError("malformed: empty header")
    if header[0] != VERSION:
        raise WireError(f"version: {header[0]}, this mien speaks {VERSION}")
    return header[1:], payload


def parse(decode: Callable[[bytes], _Message], data: bytes, limit: int = MAX_HEADER_BYTES) -> _Message:
    """Bytes as `decode` reads them.

    Raises:
        WireError: there are more than `limit`, or `decode` refuses them.
    """
    if len(data) > limit:
        raise WireError(f"oversized: more than {limit} bytes")
    try:
        return decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise WireError(f"malformed: {error}") from None


@lru_cache(8192)
def _check_topic(topic_name: bytes, kind: str, session: str, part: str) -> None:
    """What a subscriber chose by its topic must be what it gets."""
    if not NAME.fullmatch(session) or (part and not NAME.fullmatch(part)):
        raise WireError("malformed: a name of a session, modality or worker")
    if topic_name != topic(kind, session, part):
        raise WireError("malformed: the topic is of another message")


def _check_header(header: FeatureHeader) -> None:
    if len(header.extractor) > 256 or len(header.reason) > 256 or len(header.stamps) > 16:
        raise WireError("oversized: extractor, reason or stamps")
    if not 0 <= header.rows <= MAX_ROWS or not 1 <= header.dim <= MAX_DIM:
        raise WireError("oversized: rows or dim")
    # Not `check_count` and `check_time`: a loop over their arguments takes as long as all of this does.
    if not (0 <= header.run <= MAX_COUNT and 0 <= header.seq <= MAX_COUNT):
        raise WireError("malformed: run or seq is out of range")
    if not 0 <= header.t_start_ns <= header.t_end_ns <= MAX_TIME_NS:
        raise WireError("time: t_start_ns <= t_end_ns is out of range")
    if header.counts_from_ns and not 0 <= header.counts_from_ns - header.t_end_ns <= MAX_SETTLE_NS:
        raise WireError("time: counts_from_ns is before t_end_ns, or long after it")
    for stamp_ns in header.stamps.values():
        if not 0 <= stamp_ns <= MAX_TIME_NS:
            raise WireError("time: a stamp is out of range")
    if header.words:
        if len(header.words) > MAX_WORDS:
            raise WireError("oversized: words")
        check_words((text, start_ns, end_ns, share) for text, start_ns, end_ns, _, share in header.words)
    if header.phrases:
        check_phrases(header.phrases)
    if header.uncertain and len(header.uncertain) != (len(header.words) + 7) // 8:
        raise WireError("truncated: uncertain does not hold one bit a word")


def _bits(flags: Iterable[bool]) -> bytes:
    """One bit each, least significant bit first; nothing where none is set."""
    bits = np.fromiter(flags, np.bool_)
    return np.packbits(bits, bitorder="little").tobytes() if bits.any() else b""


@lru_cache(256)
def _unpacked(bits: bytes, count: int) -> Bool:
    """One flag a bit, least significant bit first, not to be written to: few patterns come again and again."""
    flags: Bool = np.unpackbits(np.frombuffer(bits, np.uint8), count=count, bitorder="little").astype(bool)
    flags.setflags(write=False)
    return flags


def _times(header: FeatureHeader, by_ns: int) -> Int64:
    offsets_us, start_ns = header.offsets_us, header.t_start_ns + by_ns
    if offsets_us is None:
        return even_times_ns(start_ns, header.t_end_ns + by_ns, header.rows)
    if len(offsets_us) != header.rows:
        raise WireError("truncated: offsets_us does not hold one number a row")
    latest_us = (header.t_end_ns - header.t_start_ns) // 1000 + _SLACK_US
    if offsets_us and (min(offsets_us) < -5 * _SLACK_US or max(offsets_us) > latest_us):
        raise WireError("time: a row is outside the span of its message")
    return np.array([start_ns + offset_us * 1000 for offset_us in offsets_us], np.int64)


encode_prediction, decode_prediction = _json_codec("prediction", Prediction, check_prediction)
encode_status, decode_status = _json_codec("status", Status, check_status)
encode_about, decode_about = _json_codec("about", About, check_about)
encode_cue, decode_cue = _json_codec("cue", Cue, check_cue)

_decode_recent = msgspec.msgpack.Decoder(list[tuple[bytes, bytes]]).decode


def encode_recent(name: bytes, messages: Iterable[Frames]) -> Frames:
    """Features messages, oldest first, in one message; `name` is its topic."""
    return [name, VERSION_BYTE, _encode_msgpack([(header, payload) for _, header, payload in messages])]


def decode_recent(frames: Sequence[bytes]) -> list[Frames]:
    """The features messages in such a message, oldest first, their headers checked.

    Raises:
        WireError: any deviation from the protocol.
    """
    pairs = parse(_decode_recent, open_frames(frames)[1], MAX_PAYLOAD_BYTES)
    name = b"features/" + bytes(frames[0]).removeprefix(b"recent/")
    messages = [[name, header, inner] for header, inner in pairs]
    for message in messages:
        decode_feature_header(message)
    return messages
