"""The dashboard's subscriber: one for any number of browsers, in its own thread."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from typing import Any

from mien.config import BusConfig
from mien.errors import WireError
from mien.messages import About, Prediction, Status
from mien.models.voice.columns import ENERGY, VAD
from mien.stream.bus.preview import Preview, decode_edges, decode_preview
from mien.stream.bus.sockets import Receiver
from mien.stream.bus.subscriber import Subscriber
from mien.stream.bus.wire import decode_about, decode_features, topic
from mien.stream.dashboard.history import History

STALE_S = 2.0  # without a prediction
_WATCH_S = 2.0  # a browser that has not asked for this long is not watching
_LATENCIES = 900  # half a minute's worth
_SILENT_DB = 10.0 / math.log(10.0)  # from the natural logarithm of a power
_DECIMATE = 5  # shows ten of the 50 audio rows per second


class Collector:
    """Subscribes, keeps a history, and tells what is new.

    Args:
        session: one session's name; None for any.
        pictures: False if the page is served to other machines: landmarks only.

    Attributes:
        lock: to hold while reading or changing anything below.
        prediction: the newest, None before the first. about: the session's own description.
        preview: the newest picture with its landmarks; None without a viewer.
        edges: the mesh's lines, pairs of landmark numbers.
    """

    def __init__(self, bus: BusConfig, session: str | None, minutes: float, *, pictures: bool = True) -> None:
        self.lock = threading.Lock()
        self.history = History(minutes)
        self.prediction: Prediction | None = None
        self.statuses: dict[str, Status] = {}
        self.about: About | None = None
        self.preview: Preview | None = None
        self.edges: list[int] = []
        self.lost = 0
        self.endpoint = bus.address()
        self._pictures = pictures
        self._wanted_session = session
        self._received_s = -math.inf
        self._status_s: dict[str, float] = {}
        self._preview_s = -math.inf
        self._software_ms: deque[float] = deque(maxlen=_LATENCIES)
        self._end_to_end_ms: deque[float] = deque(maxlen=_LATENCIES)
        self._arrivals_s: deque[float] = deque(maxlen=256)
        self._watchers: dict[int, tuple[float, bool]] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="collector", daemon=True)
        self._bus, self._paused = bus, False
        self._subscribed: tuple[bytes, ...] = ()
        self._connect()  # here, so that errors in an endpoint or its keys are raised to the caller

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(5)

    def watch(self, client: int, picture: bool) -> None:
        """A browser asks for previews, with or without the picture. Call with the lock held."""
        self._watchers[client] = (time.monotonic(), picture)

    def unwatch(self, client: int) -> None:
        """A browser has left. Call with the lock held."""
        self._watchers.pop(client, None)

    def pause(self, paused: bool) -> None:
        """Pause or resume receiving: paused while a page would show many sessions as one."""
        self._paused = paused

    @property
    def is_watched(self) -> bool:
        """Whether a browser has asked recently."""
        now_s = time.monotonic()
        return any(now_s - at_s < _WATCH_S for at_s, _ in list(self._watchers.values()))

    @property
    def is_elsewhere(self) -> bool:
        """Whether the session's camera is served at another address, as in a fleet. Call with the lock held."""
        workers = self.about.config.get("bus", {}).get("workers", {}) if self.about is not None else {}
        return bool(workers.get("video")) and workers["video"] != self._bus.address("video")

    @property
    def silent_s(self) -> float | None:
        """Seconds since the last new prediction; None before the first."""
        return None if self._received_s == -math.inf else time.monotonic() - self._received_s

    @property
    def is_stale(self) -> bool:
        """Whether the display is outdated: no prediction for two seconds, or the session is over."""
        inference = self.statuses.get("inference")
        over = inference is not None and inference.state in ("ended", "stopped", "failed")
        return over or self.silent_s is None or self.silent_s >= STALE_S

    @property
    def per_second(self) -> float:
        """Predictions per second, over the last two seconds."""
        since_s = time.monotonic() - 2.0
        return sum(at_s >= since_s for at_s in self._arrivals_s) / 2.0

    def status_age_s(self, worker: str) -> float:
        """Seconds since a process's last status."""
        return time.monotonic() - self._status_s.get(worker, -math.inf)

    def preview_age_s(self) -> float:
        """Seconds since the last picture came."""
        return time.monotonic() - self._preview_s

    def latencies(self) -> dict[str, Any]:
        """p50 and p99 in ms over half a minute: from frame read to published, and from captured to published."""
        return {"software": _percentiles(self._software_ms), "end_to_end": _percentiles(self._end_to_end_ms)}

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                if self._paused:
                    self._disconnect()
                    self._stopping.wait(0.1)
                    continue
                if not self._is_connected:
                    self._connect()
                predictions = self._subscriber.wait(0.02)
                with self.lock:
                    self._receive(predictions)
                    self._receive_about()
                    self._receive_sound()
                    self._receive_pictures()
                    self._update_subscriptions()
        finally:
            self._disconnect()

    def _connect(self) -> None:
        bus, session = self._bus, self._wanted_session
        self._subscriber = Subscriber(bus.address(), session=session, keys=bus.keys)
        sound_topic = topic("features", session, "audio") if session else b"features/"
        self._audio = Receiver(bus.address("audio"), (sound_topic,), keys=bus.keys)
        about_topic = topic("about", session) if session else b"about/"
        self._about = Receiver(bus.address(), (about_topic,), keys=bus.keys)
        self._video = Receiver(bus.address("video"), (), high_water_mark=4, keys=bus.keys)
        self._subscribed, self._is_connected = (), True

    def _disconnect(self) -> None:
        for each in (self._subscriber, self._about, self._audio, self._video):
            each.close()
        self._is_connected = False

    def _receive(self, predictions: list[Prediction]) -> None:
        now_s = time.monotonic()
        for worker, status in self._subscriber.statuses.items():
            if self.statuses.get(worker) is not status:
                self.statuses[worker] = status
                self._status_s[worker] = now_s
        for prediction in predictions:
            if self.prediction is not None and self.prediction.run != prediction.run:
                self._software_ms.clear()
                self._end_to_end_ms.clear()
            self.prediction = prediction
            self.history.add(prediction)
            self._received_s = now_s
            self._arrivals_s.append(now_s)
            if "total" in prediction.latency:
                self._software_ms.append(prediction.latency["total"])
                self._end_to_end_ms.append(prediction.latency["capture"] + prediction.latency["total"])
        self.lost = self._subscriber.lost

    def _receive_about(self) -> None:
        for frames in self._about.drain():
            with contextlib.suppress(WireError):
                self.about = decode_about(frames)

    def _receive_sound(self) -> None:
        for frames in self._audio.drain():
            if frames[0].rpartition(b"/")[2] != b"audio":
                continue
            try:
                message = decode_features(frames)
            except WireError:
                continue  # inference rejects it too, and counts it
            if message.values.shape[1] <= VAD:
                continue  # from another extractor
            for index in range(0, len(message.values), _DECIMATE):
                rows = message.values[index : index + _DECIMATE]
                level_db = float(rows[:, ENERGY].max()) * _SILENT_DB
                speech = float(rows[:, VAD].max())
                voice = bool(message.valid[index : index + _DECIMATE].any())
                self.history.add_sound(int(message.times_ns[index]), level_db, speech, voice)

    def _receive_pictures(self) -> None:
        for frames in self._video.drain():
            try:
                if frames[0].endswith(b"/edges"):
                    self.edges = decode_edges(frames).reshape(-1).tolist()
                    continue
                preview = decode_preview(frames)
            except WireError:
                continue
            if self._subscribed:
                self.preview = preview
                self._preview_s = time.monotonic()
                self.history.add_picture(preview)

    def _update_subscriptions(self) -> None:
        """Subscribe to pictures while a browser wants them, to landmarks while one watches without, else to neither."""
        now_s = time.monotonic()
        with_picture = [picture for at_s, picture in self._watchers.values() if now_s - at_s < _WATCH_S]
        session = self._wanted_session or (self.prediction.session if self.prediction else None)
        if session is None and "video" in self.statuses:
            session = self.statuses["video"].session
        prefixes: tuple[bytes, ...] = ()
        if with_picture and session is not None:
            kind = "picture" if self._pictures and any(with_picture) else "mesh"
            prefixes = (topic("preview", session, kind), topic("preview", session, "edges"))
        for prefix in self._subscribed:
            if prefix not in prefixes:
                self._video.socket.unsubscribe(prefix)
        for prefix in prefixes:
            if prefix not in self._subscribed:
                self._video.socket.subscribe(prefix)
        if self._subscribed and not prefixes:
            self.preview = None  # the next viewer would take it for current
        self._subscribed = prefixes


def _percentiles(values_ms: deque[float]) -> list[float] | None:
    if not values_ms:
        return None
    ordered = sorted(values_ms)
    return [round(ordered[min(len(ordered) - 1, int(len(ordered) * share))], 1) for share in (0.5, 0.99)]
