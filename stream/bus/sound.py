"""Sound messages: what the microphone heard, as it was analysed, for a recorder."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from mien.errors import WireError
from mien.stream.bus.limits import MAX_TIME_NS, NAME
from mien.stream.bus.wire import (
    MAX_HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    VERSION_BYTE,
    Frames,
    open_frames,
    topic,
)


class Sound(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of sound.

    Attributes:
        run, seq: of the audio worker; `seq` counts pieces without gaps.
        t_start_ns: capture time of the first sample.
        rate_hz: samples per second.
        pcm: mono, 16 bits, little-endian.
    """

    session: str
    run: int
    seq: int
    t_start_ns: int
    rate_hz: int
    pcm: bytes


class _Header(msgspec.Struct, frozen=True):
    session: str
    run: int
    seq: int
    t_start_ns: int
    rate_hz: int


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Header).decode


def decode_sound(frames: Sequence[bytes]) -> Sound:
    """The sound of a message.

    Raises:
        WireError: any deviation from the protocol.
    """
    header_bytes, pcm = open_frames(frames)
    if len(header_bytes) > MAX_HEADER_BYTES or len(pcm) > MAX_PAYLOAD_BYTES:
        raise WireError("oversized: header or payload")
    try:
        header = _decode(header_bytes)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise WireError(f"malformed: header: {error}") from None
    if not NAME.fullmatch(header.session) or min(header.run, header.seq) < 0:
        raise WireError("malformed: session, run or seq")
    if not 0 <= header.t_start_ns <= MAX_TIME_NS or not 1000 <= header.rate_hz <= 384_000:
        raise WireError("time: out of range")
    if len(pcm) % 2:
        raise WireError("truncated: samples are int16")
    return Sound(
        session=header.session,
        run=header.run,
        seq=header.seq,
        t_start_ns=header.t_start_ns,
        rate_hz=header.rate_hz,
        pcm=pcm,
    )


def encode_sound(sound: Sound) -> Frames:
    """A sound message."""
    header = _Header(sound.session, sound.run, sound.seq, sound.t_start_ns, sound.rate_hz)
    return [topic("sound", sound.session), VERSION_BYTE + _encode(header), sound.pcm]
