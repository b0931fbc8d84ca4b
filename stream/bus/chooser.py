"""Changes a running capture worker's source or face: lists the options, sends a choice, and waits for the answer."""

from __future__ import annotations

import contextlib
import secrets
import time
from pathlib import Path

import zmq

from mien.closing import Closing
from mien.errors import BusError, WireError
from mien.stream.bus.choices import Choice, Offer, Place, decode_offer, encode_choice
from mien.stream.bus.connection import Connection

TIMEOUT_S = 15.0  # opening a device may take ten


class Chooser(Closing):
    """A connection to one capture worker.

    Args:
        endpoint: of the worker. session: its session's name; None for any.
        keys: folder of keys, empty for the user's; required for other machines.

    Raises:
        BusError: not an endpoint. KeysError: keys are required but missing.
    """

    def __init__(self, endpoint: str, worker: str, session: str | None = None, keys: str | Path = "") -> None:
        self._endpoint = endpoint
        self._worker = worker
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.XSUB)
        self._socket.setsockopt(zmq.RCVHWM, 64)
        self._socket.setsockopt(zmq.MAXMSGSIZE, 1 << 20)
        self._connection = Connection(self._socket, endpoint, keys)
        self._socket.send(b"\x01offer/" + (f"{session}/{worker}".encode() if session else b""))

    def offer(self, timeout_s: float = TIMEOUT_S) -> Offer:
        """The worker's options.

        Raises:
            BusError: no worker answered.
        """
        return self._wait("", timeout_s)

    def choose(
        self,
        offer: Offer,
        *,
        source: str | None = None,
        face: Place | str | None = None,
        rest: float | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Offer:
        """Choose a source, a face, or to measure a person at rest.

        Args:
            source: its id. face: a point in it as fractions of the picture, or "largest".
            rest: seconds for which to measure a person; 0 asks for the result.

        Returns:
            The new state.

        Raises:
            BusError: it was rejected, or no answer came.
        """
        nonce = secrets.token_hex(8)
        choice = {"source": source, "face": face, "rest": rest}
        frame = {"session": offer.session, "worker": self._worker, "nonce": nonce} | choice
        self._socket.send(encode_choice(Choice(**frame)))  # type: ignore[arg-type]
        answer = self._wait(nonce, timeout_s)
        if answer.refused:
            raise BusError(answer.refused)
        return answer

    def close(self) -> None:
        self._connection.close()

    def _wait(self, nonce: str, timeout_s: float) -> Offer:
        deadline_s = time.monotonic() + timeout_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            if not self._socket.poll(max(int(left_s * 1000), 1), zmq.POLLIN):
                continue
            frames = self._socket.recv_multipart()
            with contextlib.suppress(WireError):
                offer = decode_offer(frames)
                if offer.worker == self._worker and (not nonce or offer.answers == nonce):
                    return offer
        self._connection.look()
        raise BusError(
            self._connection.trouble
            or f"no {self._worker} worker answers at {self._endpoint}; is `mien run` running on that port, and may "
            "others choose there (bus.control)?"
        )
