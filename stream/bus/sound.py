"""Sound messages: the analysed microphone audio, for a recorder."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from mien.errors import WireError
from mien.stream.bus.limits import MAX_TIME_NS, NAME
from mien.stream.bus.wire import VERSION_BYTE, Frames, open_frames, parse, topic


class Sound(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A chunk of audio. The message's header is this struct without `pcm`, which is the payload.

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
    pcm: bytes = b""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Sound).decode


def encode_sound(sound: Sound) -> Frames:
    """A sound message."""
    header = msgspec.structs.replace(sound, pcm=b"")
    return [topic("sound", sound.session), VERSION_BYTE + _encode(header), sound.pcm]


def decode_sound(frames: Sequence[bytes]) -> Sound:
    """The sound of a message.

    Raises:
        WireError: any deviation from the protocol.
    """
    header, pcm = open_frames(frames)
    sound = msgspec.structs.replace(parse(_decode, header), pcm=pcm)
    if not NAME.fullmatch(sound.session) or min(sound.run, sound.seq) < 0:
        raise WireError("malformed: session, run or seq")
    if not 0 <= sound.t_start_ns <= MAX_TIME_NS or not 1000 <= sound.rate_hz <= 384_000:
        raise WireError("time: out of range")
    if len(pcm) % 2:
        raise WireError("truncated: samples are int16")
    return sound
