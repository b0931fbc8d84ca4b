"""The capture process: runs one modality and publishes its rows."""

from __future__ import annotations

import gc
import time
from collections import Counter, deque

import msgspec

from mien.clock import NS_PER_MS, NS_PER_S
from mien.messages import FeatureWindow, Status, WorkerState
from mien.stream.bus.clock_exchange import answer_question
from mien.stream.bus.sockets import Publisher
from mien.stream.bus.wire import MAX_PAYLOAD_BYTES, Frames, encode_features, encode_recent, encode_status, topic
from mien.stream.capture.choosing import Choosing
from mien.stream.capture.preview import PreviewPublisher, SoundPublisher
from mien.stream.modalities.base import Modality, create_modality
from mien.stream.monitoring.meter import RateMeter, ResourceMeter
from mien.stream.processes.control import BUSY_TIMEOUT_S, HEARTBEAT_TIMEOUT_S, Control

_STATUS_INTERVAL_S = 1.0
_LISTENER_TIMEOUT_S = 10.0


def capture(worker: str, control: Control) -> None:
    """Run a capture worker ("video", "audio", "text") until its clip ends or it is told to stop.

    Raises:
        MienError: the source, an asset or the port is not available.
    """
    config = control.assignment.config
    publisher = Publisher(config.bus.endpoint(worker), config.bus, lossless=config.clip.fast)
    modality = create_modality(worker, config, control.clock)
    process = _CaptureProcess(worker, control, publisher, modality)
    try:
        process.publish_status("starting")
        modality.prepare()
        # Freeze what is loaded by now: scanning it again and again would only slow down the slowest rows.
        gc.collect()
        gc.freeze()
        process.publish_status("ready")
        control.report_state("ready", spec=msgspec.to_builtins(modality.spec))
        process.wait_for_start()
        process.run()
    finally:
        modality.close()
        process.close()
        publisher.close()


class _CaptureProcess:
    def __init__(self, worker: str, control: Control, publisher: Publisher, modality: Modality) -> None:
        self._worker = worker
        self._control = control
        self._publisher = publisher
        self._modality = modality
        self._session = control.assignment.config.session
        self._previews = PreviewPublisher(publisher, control.assignment.config, control.run)
        self._recent = RecentFeatures(self._session, modality.spec.name)
        publisher.answer(self._recent.topic, self._recent.message)
        publisher.on_clock_request = lambda question: answer_question(question, control.run, control.clock)
        self._sound = SoundPublisher(publisher, control.assignment.config, control.run)
        self._choosing = Choosing(publisher, worker, control.assignment.config, control.run, control.clock, modality)
        self._meter = RateMeter()
        self._resources = ResourceMeter()
        self._seq = 0
        self._t_end_ns: int | None = None
        self._state: WorkerState = "starting"
        self._reported_s = 0.0

    def wait_for_start(self) -> None:
        """Wait for the start order; when playing a clip in full, also for a subscriber."""
        while not self._control.started.wait(0.05) and not self._control.stopping.is_set():
            self._control.beat()
            self._report_if_due("ready")
        if self._control.assignment.config.clip.fast:
            rows_topic = topic("features", self._session, self._modality.spec.name)
            deadline_s = time.monotonic() + _LISTENER_TIMEOUT_S
            while not self._publisher.has_subscriber(rows_topic) and time.monotonic() < deadline_s:
                time.sleep(0.005)

    def run(self) -> None:
        """Publish until the clip ends or we are told to stop; the last status says which."""
        self._modality.start(self._control.start_ns)
        for rows in self._modality.rows():
            # While a device is being found, opening it may block.
            self._control.beat(BUSY_TIMEOUT_S if self._state == "degraded" else HEARTBEAT_TIMEOUT_S)
            if self._control.stopping.is_set():
                self.publish_status("stopped")
                return
            if rows is not None:
                self._publish(rows)
            for piece in self._modality.take_sound():
                self._sound.offer(piece)
            self._previews.deliver()
            self._publisher.service()
            if self._choosing.is_opening():
                self._control.beat(BUSY_TIMEOUT_S)
            if self._choosing.take(
                lambda section, source: self._control.report_state("using", section=section, source=source)
            ):
                self.publish_status(self._state)
            state = self._modality.health().state
            # The source may end before its last rows are made; only `rows()` knows when it is done.
            self._report_if_due("running" if state == "ended" else state)
        self.publish_status("ended")
        self._control.report_state("ended")
        # The last status must arrive before the socket closes; the supervisor stops us when it has.
        while not self._control.stopping.wait(0.05):
            self._control.beat()
            self._report_if_due("ended")

    def close(self) -> None:
        """Stop publishing."""
        self._choosing.close()
        self._previews.close()

    def publish_status(self, state: WorkerState) -> None:
        """Publish this worker's status."""
        self._state, self._reported_s = state, time.monotonic()
        health = self._modality.health()
        cpu_percent, rss_mb = self._resources.read()
        now_ns = self._control.clock.now_ns()
        drops = Counter(health.drops) + Counter(self._publisher.drops)
        if self._choosing.refused:
            drops["refused_choices"] = self._choosing.refused
        live = not self._control.assignment.config.clip.fast and self._t_end_ns is not None
        status = Status(
            session=self._session,
            worker=self._worker,
            run=self._control.run,
            t_ns=now_ns,
            state=state,
            pid=self._resources.pid,
            fps=self._meter.rate(),
            drops=dict(drops),
            lag_ms=(now_ns - self._t_end_ns) / NS_PER_MS if live and self._t_end_ns is not None else None,
            last_error=health.last_error,
            cpu_percent=cpu_percent,
            rss_mb=rss_mb,
            detail=health.detail | {"previews": self._previews.sent, "preview_bytes": self._previews.sent_bytes}
            if self._worker == "video"
            else health.detail,
            next_seq=self._seq,
        )
        self._publisher.send(encode_status(status))

    def _publish(self, rows: FeatureWindow) -> None:
        spec = self._modality.spec
        message = msgspec.structs.replace(
            rows,
            session=self._session,
            modality=spec.name,
            run=self._control.run,
            seq=self._seq,
            extractor=spec.extractor,
            stamps={**rows.stamps, "sent": self._control.clock.now_ns()},
        )
        # Rows that append are not repeated to late subscribers: all others would get them twice.
        frames = encode_features(message)
        self._publisher.send(frames, keep=spec.snapshot)
        self._recent.add(frames, rows.t_end_ns)
        # After the features, so that previews do not delay them.
        self._previews.offer(self._modality.picture(), rows.t_end_ns, self._seq)
        self._seq += 1
        self._t_end_ns = rows.t_end_ns
        self._meter.tick(max(len(rows.values), 1) if not spec.snapshot else 1)

    def _report_if_due(self, state: WorkerState) -> None:
        if state != self._state or time.monotonic() - self._reported_s >= _STATUS_INTERVAL_S:
            self.publish_status(state)


KEPT_NS = 8 * NS_PER_S  # the window, plus a margin for an encoder's steps and late rows


class RecentFeatures:
    """A worker's messages of the last seconds, at least the last one, for a recorder that joins in mid-session.

    A prediction is made from five seconds of rows. With those from before it joined, a recorder's first prediction can
    be reproduced from its file like any later one. They are sent, in one message, for each subscription to
    `recent/<session>/<modality>` by name.

    Args:
        session, modality: of the messages.
    """

    def __init__(self, session: str, modality: str) -> None:
        self.topic = topic("recent", session, modality)
        self._kept: deque[tuple[int, Frames]] = deque()
        self._bytes = 0

    def add(self, frames: Frames, t_end_ns: int) -> None:
        """Store a features message."""
        self._kept.append((t_end_ns, frames))
        self._bytes += sum(map(len, frames))
        while len(self._kept) > 1 and (self._kept[0][0] < t_end_ns - KEPT_NS or self._bytes > MAX_PAYLOAD_BYTES // 2):
            self._bytes -= sum(map(len, self._kept.popleft()[1]))

    def message(self) -> Frames | None:
        """All of them in one message; None before the first."""
        if not self._kept:
            return None
        return encode_recent(self.topic, (frames for _, frames in self._kept))
