"""Sound for a recorder: what the microphone heard, as it was analysed.

It leaves the audio worker only if the session was told to share it (`audio.share`), only on loopback, and only while
there is a subscription by name. The bytes are in `stream/protocol.md`.
"""

from __future__ import annotations

import numpy as np

from mien.config import Config
from mien.stream.bus.curve import host_of, is_loopback
from mien.stream.bus.sockets import Publisher
from mien.stream.bus.sound import Sound, encode_sound
from mien.stream.bus.wire import topic
from mien.stream.modalities.base import SoundPiece

_PREFIX = b"sound/"


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
        """Send a piece of sound, if it is wanted."""
        if not self._allowed or not len(piece.samples) or not self._is_wanted():
            return
        pcm = (np.clip(piece.samples, -1.0, 1.0) * 32767.0).round().astype("<i2").tobytes()
        sound = Sound(
            session=self._session,
            run=self._run,
            seq=self._seq,
            t_start_ns=max(piece.t_start_ns, 0),
            rate_hz=piece.rate_hz,
            pcm=pcm,
        )
        self._publisher.send(encode_sound(sound), keep=False)
        self._seq += 1

    def _is_wanted(self) -> bool:
        """Only a subscription that names sound counts: wildcard subscriptions do not trigger it."""
        self._publisher.service()
        return any(
            prefix.startswith(_PREFIX) and self._topic.startswith(prefix) for prefix in self._publisher.subscriptions
        )
