"""Sound for a recorder: what the microphone heard, as it was analysed.

It leaves the audio worker only if the session was told to share it (`audio.share`), only on loopback, and only while
somebody subscribes to it by name. The bytes are in `stream/protocol.md`.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from mien.config import Config
from mien.errors import WireError
from mien.stream.bus.curve import host_of, is_loopback
from mien.stream.bus.limits import MAX_TIME_NS, NAME
from mien.stream.bus.sockets import Publisher
from mien.stream.bus.wire import (
    MAX_HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    VERSION_BYTE,
    Frames,
    open_frames,
    topic,
)
from mien.stream.modality import SoundPiece

_PREFIX = b"sound/"


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


class SoundPublisher:
    """Sends sound on the audio worker's socket while it is wanted and allowed.

    Args:
        publisher: the worker's socket. config: the session's. run: of the worker.
    """

    def __init__(self, publisher: Publisher, config: Config, run: int) -> None:
        self._publisher = publisher
        self._session, self._run, self._seq = config.session, run, 0
        self._topic = topic("sound", config.session)
        self._allowed = config.audio.share and is_loopback(host_of(publisher.endpoint))

    def offer(self, piece: SoundPiece) -> None:
        """Send a piece of sound, if somebody asked for it."""
        if not self._allowed or not len(piece.samples) or not self._is_wanted():
            return
        pcm = (np.clip(piece.samples, -1.0, 1.0) * 32767.0).round().astype("<i2").tobytes()
        header = _Header(self._session, self._run, self._seq, max(piece.t_start_ns, 0), piece.rate_hz)
        self._publisher.send([self._topic, VERSION_BYTE + _encode(header), pcm], keep=False)
        self._seq += 1

    def _is_wanted(self) -> bool:
        """Only a subscription that names sound counts: whoever takes everything has not asked for it."""
        self._publisher.service()
        return any(
            prefix.startswith(_PREFIX) and self._topic.startswith(prefix) for prefix in self._publisher.subscriptions
        )


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


def sound_frames(sound: Sound) -> Frames:
    """A piece of sound as a message."""
    header = _Header(sound.session, sound.run, sound.seq, sound.t_start_ns, sound.rate_hz)
    return [topic("sound", sound.session), VERSION_BYTE + _encode(header), sound.pcm]
