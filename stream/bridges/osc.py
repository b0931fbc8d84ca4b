"""OSC over UDP, for music, light and media programs: one bundle of messages per prediction.

/mien/SESSION/sentiment            float   -3 ... 3, and sentiment_smooth
/mien/SESSION/confidence           float   0 ... 1
/mien/SESSION/emotion/NAME         float   probability of each of the seven emotions
/mien/SESSION/top                  string  the most probable emotion
/mien/SESSION/share/MODALITY       float   0 ... 1
/mien/SESSION/age_ms/MODALITY      float   of the newest evidence; -1 if there is none
/mien/SESSION/transcript           string  when it changes
/mien/SESSION/abstains             string  why there is no prediction; then none of the above is sent
/mien/SESSION/status/WORKER        string  state of a process, when it changes
"""

from __future__ import annotations

import socket

from pythonosc.osc_bundle_builder import IMMEDIATELY, OscBundleBuilder
from pythonosc.osc_message_builder import OscMessageBuilder

from mien.errors import ConfigError
from mien.messages import Prediction
from mien.stream.bridges.feed import Counts, Event

_MAX_TEXT = 1024  # a datagram must fit into UDP's 64 KiB, and most receivers read less


class OscOutlet:
    """Sends bundles to one UDP address.

    Raises:
        ConfigError: the address cannot be resolved.
    """

    def __init__(self, host: str, port: int, counts: Counts) -> None:
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        except OSError as error:
            raise ConfigError(f"cannot resolve {host}: {error.strerror or error}; correct --to HOST:PORT") from error
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._address = address
        self._counts = counts
        self._transcripts: dict[str, str] = {}

    def send(self, event: Event) -> None:
        values = self._prediction(event) if isinstance(event, Prediction) else {f"status/{event.worker}": event.state}
        bundle = OscBundleBuilder(IMMEDIATELY)
        for address, value in values.items():
            message = OscMessageBuilder(f"/mien/{event.session}/{address}")
            message.add_arg(value)
            bundle.add_content(message.build())
        try:
            self._socket.sendto(bundle.build().dgram, self._address)
            self._counts.sent += 1
        except BlockingIOError:
            self._counts.dropped += 1
        except OSError:  # nothing listens there (ICMP may say so); the next datagram may arrive
            self._counts.errors += 1

    def close(self) -> None:
        self._socket.close()

    def _prediction(self, prediction: Prediction) -> dict[str, float | str]:
        values: dict[str, float | str] = {}
        text = f"{prediction.transcript.committed} {prediction.transcript.tentative}".strip()[-_MAX_TEXT:]
        if self._transcripts.get(prediction.session) != text:
            self._transcripts[prediction.session] = text
            values["transcript"] = text
        if prediction.abstains is not None:
            return {**values, "abstains": prediction.abstains}
        for name in ("sentiment", "sentiment_smooth", "confidence"):
            value = getattr(prediction, name)
            if value is not None:
                values[name] = float(value)
        values |= {f"emotion/{name}": float(share) for name, share in (prediction.emotions or {}).items()}
        values["top"] = prediction.top_emotion or ""
        values |= {f"share/{name}": float(share) for name, share in prediction.gates.items()}
        values |= {f"age_ms/{name}": -1.0 if age is None else float(age) for name, age in prediction.age_ms.items()}
        return values
