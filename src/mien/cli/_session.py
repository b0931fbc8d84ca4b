"""Running a session from the terminal: start, show, end, summary. Shared by `mien run`, `mien demo`, `mien replay`."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec
from rich.console import Console
from rich.live import Live
from rich.text import Text

from mien.cli import _view
from mien.cli._terminal import ending_signals, make_console
from mien.config import Config
from mien.errors import FileError, RecordingError
from mien.files import check_target, json_text, write_file
from mien.messages import Prediction, Status
from mien.stream.bus.subscriber import Subscriber
from mien.stream.dashboard.launch import DashboardProcess
from mien.stream.monitoring.notify import ServiceManager
from mien.stream.monitoring.summary import STAGES, Summary
from mien.stream.processes.plan import Session
from mien.stream.processes.supervisor import Supervisor
from mien.stream.recording.control import RecorderProcess
from mien.stream.recording.recorder import RecorderState
from mien.stream.recording.replay import Player

_FRAME_S = 0.1
_AMISS = ("degraded", "failed")
_SUBSCRIBED_S = 5.0  # for inference to answer a subscription
_RECORDER_S = 60.0  # for a recorder to start and to receive from the session

Output = Literal["view", "lines", "json"]  # how predictions are shown


def output_of(*, as_json: bool, quiet: bool) -> Output:
    """How predictions are shown on this standard output."""
    return "json" if as_json else "lines" if quiet or not sys.stdout.isatty() else "view"


def run_session(
    session: Session,
    *,
    badge: str,
    seconds: float | None,
    output: Output,
    summary_path: Path | None = None,
    record: Path | None = None,
    video: bool = False,
    audio: bool = False,
    player: Player | None = None,
    dashboard: Callable[[], DashboardProcess] | None = None,
) -> Summary:
    """Run a session until its clips end, `seconds` have passed, or Ctrl-C; then print its summary.

    Predictions go to standard output; everything else to standard error.

    Args:
        summary_path: JSON file to create. record: file to record the session to, with `video` and `audio` if asked.
            Both are checked before anything starts; if recording fails later, that is reported at once and the session
            continues without.
        player: publishes a recording in place of capture workers; closed at the end.
        dashboard: starts a dashboard once the session is running; if that fails, the session continues without.

    Raises:
        MienError: a process could not start, or died and cannot be replaced; or a file could not be written.
    """
    _check_targets(record, summary_path)
    config, bus = session.config, session.config.bus
    journal, manager = Journal(config), ServiceManager()
    console = make_console(stderr=True, quiet=journal.for_machines)
    for note in session.notes:
        journal.note(note, console)
    with ending_signals() as stopping:
        supervisor = Supervisor(session)
        summary = Summary()
        recorder = page = exporter = None
        failure: str | None = None
        try:
            if record is not None:
                # It subscribes before the session publishes.
                recorder = RecorderProcess(record, bus, config.session, video=video, audio=audio)
            if config.service.metrics_port:
                from mien.stream.monitoring.exporter import Exporter

                exporter = Exporter(bus.address(), config.session, config.service.metrics_port, keys=bus.keys)
            supervisor.launch()
            if _wait_ready(supervisor, stopping, console):
                with Subscriber(bus.address(), session=config.session, keys=bus.keys) as subscriber:
                    _await_subscription(subscriber, stopping)
                    if recorder is not None:
                        await_recorder(recorder, stopping)
                    supervisor.start()
                    if player is not None:
                        player.start()
                    show = _Show(session, badge, output, summary)
                    page = dashboard() if dashboard is not None else None
                    manager.ready()
                    _follow(supervisor, subscriber, show, summary, stopping, seconds, player, page, journal, manager,
                            recorder)  # fmt: skip
        finally:
            if page is not None:
                page.stop()
            if recorder is not None:
                failure = _report_recording(recorder.stop(), console)
            if player is not None:
                player.close()
            manager.stopping()
            if exporter is not None:
                exporter.close()
            supervisor.stop()
    if supervisor.model:
        print_summary(summary, supervisor, console)
        if journal.for_machines:
            journal.write("info", "summary", **summary.to_dict())
    if summary_path is not None:
        figures = summary.to_dict() | {"model": supervisor.model}
        figures |= {"recording_error": failure} if failure is not None else {}
        write_file(summary_path, json_text(figures, indent=2) + "\n")
    if failure is not None:
        raise RecordingError(failure)
    return summary


def _check_targets(record: Path | None, summary_path: Path | None) -> None:
    """Fail early, before anything starts, if a file could not be written at the end.

    Raises:
        MienError: a missing folder, an existing file, a full disk, or one file for both.
    """
    if record is not None:
        check_target(record, new=True, error=RecordingError)
    if summary_path is not None:
        if record is not None and record.absolute() == summary_path.absolute():
            raise FileError(f"--record and --summary are both {summary_path}; give each its own file")
        check_target(summary_path, new=summary_path.is_file())


class Journal:
    """Log of events, in colour for people, or with `service.log = "json"` as one JSON object per line."""

    def __init__(self, config: Config) -> None:
        self._session = config.session
        self.for_machines = config.service.log == "json"  # standard error is for JSON lines only
        self._states: dict[str, tuple[str, str | None]] = {}

    def note(self, text: str, console: Console) -> None:
        """Log a message for the user."""
        if self.for_machines:
            self.write("warning", "note", message=text)
        else:
            console.print(text, style="yellow", soft_wrap=True)

    def follow(self, statuses: Iterable[Status]) -> None:
        """Log every process whose state has changed; for people, the view shows it instead."""
        if not self.for_machines:
            return
        for status in statuses:
            now = status.state, status.last_error if status.state in _AMISS else None
            if self._states.get(status.worker) != now:
                self._states[status.worker] = now
                level = "warning" if status.state in _AMISS else "info"
                self.write(level, "state", worker=status.worker, state=now[0], message=now[1], pid=status.pid)

    def write(self, level: str, event: str, **facts: Any) -> None:
        """Write one line, and flush."""
        at = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")
        line = {"time": at, "level": level, "event": event, "session": self._session, **facts}
        print(json_text(line), file=sys.stderr, flush=True)


class _Show:
    """Shows predictions as they arrive."""

    def __init__(self, session: Session, badge: str, output: Output, summary: Summary) -> None:
        self._session = session
        self._badge = badge
        self._output = output
        self._summary = summary
        self._last: Prediction | None = None
        self._heard_s = self._drawn_s = time.monotonic()
        self.live = Live(console=make_console(), auto_refresh=False, transient=False) if output == "view" else None
        self.notes_console = make_console(stderr=True) if self.live is None else self.live.console

    def add(self, prediction: Prediction) -> None:
        """Add a prediction; JSON lines are written at once."""
        self._last, self._heard_s = prediction, time.monotonic()
        if self._output == "json":
            sys.stdout.buffer.write(msgspec.json.encode(prediction) + b"\n")
            sys.stdout.buffer.flush()

    def refresh(self) -> None:
        now_s = time.monotonic()
        interval_s = 1.0 if self._output == "lines" else _FRAME_S
        if now_s - self._drawn_s < interval_s:
            return
        self._drawn_s = now_s
        if self.live is not None:
            total = self._summary.stages["total"]
            self.live.update(
                _view.render(
                    self._last,
                    self._summary.statuses,
                    badge=self._badge,
                    label=self._session.label,
                    per_second=self._summary.predictions_per_s,
                    p99_ms=total.percentile_ms(99) if total.count else None,
                    silent_s=now_s - self._heard_s,
                    width=self.live.console.width,
                    height=self.live.console.height,
                ),
                refresh=True,
            )
        elif self._output == "lines" and self._last is not None:
            print(_view.line(self._last), flush=True)


def _wait_ready(supervisor: Supervisor, stopping: threading.Event, console: Console) -> bool:
    with console.status("starting") as spinner:
        ready = threading.Event()

        def describe() -> None:
            while not ready.wait(0.2):
                spinner.update(Text("loading " + ", ".join(supervisor.waiting_for())))

        thread = threading.Thread(target=describe, daemon=True)
        thread.start()
        try:
            return supervisor.wait_ready(stopping)
        finally:
            ready.set()
            thread.join()


def await_recorder(recorder: RecorderProcess, stopping: threading.Event, timeout_s: float = _RECORDER_S) -> None:
    """Wait until a recorder misses nothing more, or until told to stop: without it, the recording would lack its start.

    Raises:
        RecordingError: it failed, or receives nothing within `timeout_s`.
    """
    if not recorder.wait_recording(timeout_s, stopping) and not stopping.is_set():
        silent = f"the recorder received nothing within {timeout_s:g} s of the start; the machine may be too busy"
        raise RecordingError(recorder.state.error or silent)


def _await_subscription(subscriber: Subscriber, stopping: threading.Event) -> None:
    """Wait until inference has answered our subscription with its last status: from then on nothing is missed."""
    deadline_s = time.monotonic() + _SUBSCRIBED_S
    while "inference" not in subscriber.statuses and not stopping.is_set() and time.monotonic() < deadline_s:
        subscriber.wait(0.02)


def _follow(
    supervisor: Supervisor,
    subscriber: Subscriber,
    show: _Show,
    summary: Summary,
    stopping: threading.Event,
    seconds: float | None,
    player: Player | None,
    page: DashboardProcess | None,
    journal: Journal,
    manager: ServiceManager,
    recorder: RecorderProcess | None,
) -> None:
    began_s, ended_s = time.monotonic(), math.inf
    with show.live or nullcontext():
        while not stopping.is_set():
            supervisor.tend()
            if player is not None and player.error is not None:
                raise player.error
            for note in supervisor.drain_notes():
                journal.note(note, show.notes_console)
            if recorder is not None and recorder.state.error:
                supervisor.report_recording(recorder.state.error)
                journal.note(f"the session continues without its recording: {recorder.state.error}", show.notes_console)
                recorder = None  # its end is reported once
            manager.alive(f"{summary.predictions} predictions, {summary.predictions_per_s:.1f} a second")
            for note in page.drain_notes() if page is not None else ():
                show.notes_console.print(note, style="bold", soft_wrap=True)
            predictions = subscriber.wait(0.05)
            now_ns = supervisor.clock.now_ns()
            for prediction in predictions:
                summary.add(prediction, now_ns)
                show.add(prediction)
            summary.lost = subscriber.lost
            for status in list(subscriber.statuses.values()):
                summary.add_status(status)
            journal.follow(subscriber.statuses.values())
            show.refresh()
            if supervisor.ended:
                # The end is reported before the last prediction arrives; wait for it, with a timeout.
                if predictions or ended_s == math.inf:
                    ended_s = time.monotonic()
                if summary.predictions + summary.lost >= supervisor.predictions or time.monotonic() > ended_s + 2.0:
                    break
            if seconds is not None and time.monotonic() - began_s >= seconds:
                break


def _report_recording(state: RecorderState, console: Console) -> str | None:
    """Report what was recorded. Returns why it ended early; None if it did not."""
    if state.error:
        if sys.exc_info()[0] is not None:  # otherwise the session ends with it
            console.print(f"not recorded: {state.error}", style="yellow", soft_wrap=True)
        return state.error
    lost = f", {state.lost} messages were lost in transit" if state.lost else ""
    text = f"recorded {state.predictions} predictions in {state.path}, {state.bytes / 1e6:.2f} MB{lost}"
    console.print(text, soft_wrap=True)
    return None


def print_summary(summary: Summary, supervisor: Supervisor, console: Console) -> None:
    """Print the run in numbers."""
    figures: dict[str, Any] = summary.to_dict()
    console.print()
    headline = f"{figures['predictions']} predictions in {figures['seconds']:.1f} s"
    text = Text(f"{headline} = {figures['predictions_per_s']:.1f}/s", style="bold")
    text.append(f", {figures['abstained']} abstained" if figures["abstained"] else "", style="not bold")
    console.print(text.append(f"   {supervisor.model}", style="not bold"), soft_wrap=True)
    if supervisor.session.config.clip.fast:
        console.print(f"played {figures['clip_seconds']:.1f} s of the clip, with a prediction at every instant")
    latency = figures["latency_ms"]
    if latency:
        console.print("latency in ms; total = frame read to prediction published", style="dim")
        for stage in STAGES:
            if stage in latency:
                p = latency[stage]
                row = "  ".join(f"{k} {p[k]:7.1f}" for k in ("p50", "p90", "p99", "max"))
                console.print(f"  {stage:<10} {row}", style="bold" if stage == "total" else "")
    lag = figures["committed_word_lag_ms"]
    if lag:
        console.print(f"  words committed after  p50 {lag['p50']:.0f}  p90 {lag['p90']:.0f} ms  ({lag['n']} words)")
    asr = figures["asr"]
    if asr:
        facts = "  ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in asr.items())
        console.print(f"  speech recognition  {facts}")
    for worker, process in figures["processes"].items():
        cpu = "  cpu     –" if process["cpu_percent"] is None else f"  cpu {process['cpu_percent']:5.1f} %"
        error = f"  {process['last_error']}" if process["last_error"] else ""
        console.print(f"  {worker:<10}{cpu}  memory {process['rss_mb']:6.1f} MB{error}", soft_wrap=True)
    drops = "  ".join(f"{cause} {count}" for cause, count in figures["drops"].items())
    console.print(f"  drops  {drops or 'none'}")
