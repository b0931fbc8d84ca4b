"""The inference process: one model, the sessions that it serves, and the socket for their predictions."""

from __future__ import annotations

import gc
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import zmq

from mien.clock import NS_PER_MS, NS_PER_S
from mien.config import Config
from mien.engines.predictor import Predictor
from mien.engines.rings import Windows
from mien.errors import ConfigError, MienError
from mien.messages import WORKERS
from mien.models.checkpoint import load_checkpoint
from mien.stream.bus.clock_exchange import answer_question
from mien.stream.bus.poller import Poller, make_room
from mien.stream.bus.sockets import FLEET_SUBSCRIPTIONS, MAX_SUBSCRIPTIONS, Publisher
from mien.stream.inference.playback import mode_of
from mien.stream.inference.prediction import Evidence, Live, Trigger
from mien.stream.inference.session import NEVER_NS, Session
from mien.stream.inference.shards import infer_in_processes
from mien.stream.monitoring.meter import ResourceMeter, StepMeter
from mien.stream.processes.control import HEARTBEAT_TIMEOUT_S, Assignment, Control

_TEND_NS = 20 * NS_PER_MS  # interval of housekeeping: connections, clocks, statuses
_ORDERS_NS = 20 * NS_PER_MS
_ORDERS_SHARE = 4  # a quarter of a long turn may go to orders: else hundreds of new sessions would wait for minutes
_RECEIVE_NS = 400 * NS_PER_MS  # limit of reading: under overload predictions are late, instead of starved
_MOST_UNREAD_NS = 2 * NS_PER_S  # a worker silent for longer is, however much of others waits to be read
_TIMEOUT_PER_SESSION_S = 0.01
_ASK_EVERY = 8  # workers read between two questions to a GPU, each of which costs a tenth of reading one
_TURNS = 5  # iterations over which housekeeping of all sessions is spread


def infer(control: Control, others: Sequence[Config] = ()) -> None:
    """Run inference until all clips have ended or it is told to stop.

    Args:
        others: further sessions, with their own workers, predicted by the same process and model and published on the
            same socket.

    Raises:
        ConfigError: two sessions share a name or a worker.
        MienError: the checkpoint or the engine cannot be used, or the port is in use.
    """
    config, room = control.assignment.config, control.assignment.room
    controls = [] if room else [control, *(control.for_config(other) for other in others)]
    check_apart([each.assignment.config for each in controls])
    places = room or len(controls)
    make_room(places)
    processes = 1 if control.assignment.endpoint else processes_for(config, places)
    if processes > 1:
        infer_in_processes(control, others, processes)
        return
    endpoint = control.assignment.endpoint or config.bus.endpoint("inference")
    # A process with room is behind a gateway, which ends floods before that many subscriptions.
    most = 2 * FLEET_SUBSCRIPTIONS if room else MAX_SUBSCRIPTIONS
    publisher = Publisher(endpoint, config.bus, lossless=config.clip.fast, sessions=places, most_subscriptions=most)
    control.report_state("bound", endpoint=publisher.address)
    try:
        checkpoint = load_checkpoint(config.inference.checkpoint)
        predictor = Predictor(checkpoint, config.inference.engine, config.inference.precision)
        modes = [mode_of(each) for each in controls] or [Live]
        span_ns, late_ns = max(mode.span_ns for mode in modes), max(mode.late_ns for mode in modes)
        Loop(control, publisher, predictor, Windows(predictor.specs, places, span_ns, late_ns)).run(controls)
    finally:
        publisher.close()


def processes_for(config: Config, sessions: int) -> int:
    """Number of processes for this many sessions."""
    if config.clip.fast:
        return 1
    wanted = config.inference.processes
    return min(os.cpu_count() or 1 if wanted == "auto" else wanted, sessions)


def check_apart(configs: Sequence[Config]) -> None:
    """Check that no two sessions share a name or a worker.

    Raises:
        ConfigError: two do.
    """
    for what, used in (
        ("the name", [config.session for config in configs]),
        ("the address of a worker", [config.bus.address(worker) for config in configs for worker in WORKERS]),
    ):
        twice = [value for value, count in Counter(used).items() if count > 1]
        if twice:
            raise ConfigError(f"two sessions have {what} {twice[0]!r}; give each its own `session` and `bus.port`")


class Loop:
    """Predicts all sessions of a process; those due at the same time are batched.

    Args:
        windows: with a place for each session; if the process has room, sessions come and go.
    """

    def __init__(self, control: Control, publisher: Publisher, predictor: Predictor, windows: Windows) -> None:
        self._control, self._publisher = control, publisher
        self._predictor, self._windows = predictor, windows
        self._resources, self._steps = ResourceMeter(), StepMeter()
        self._sessions: dict[int, Session] = {}  # by their place in the windows
        self._poller = Poller()
        self._worker_at: dict[zmq.Socket[bytes], tuple[int, str]] = {}
        self._held: set[zmq.Socket[bytes]] = set()  # of workers that are ahead: not polled
        self._wake_ns = np.full(windows.places, NEVER_NS, np.int64)
        self._ask_ns = self._wake_ns.copy()  # when to ask workers for the time
        self._tended_ns = 0
        self._carried_out_ns = time.perf_counter_ns()
        self._read_ns = 0  # when all that had come was last read
        self._turn = 0

    def run(self, controls: Sequence[Control]) -> None:
        """Run until told to stop.

        Args:
            controls: the process's view of each initial session.
        """
        config, clock = self._control.assignment.config, self._control.clock
        self._poller.register(self._publisher.socket)
        self._publisher.on_clock_request = self._answer_clock
        try:
            for control in controls:
                self._open(control)
            self._predictor.prepare(self._windows)
            # What is loaded by now stays; scanning it repeatedly would only add to tail latency.
            gc.collect()
            gc.freeze()
            for session in self._sessions.values():
                session.announce()
            if not controls:
                self._control.report_state("ready", model=self._predictor.id)
            wait_ms = 1 if config.clip.fast else min(config.inference.hop_ms, 50)
            while not self._control.stopping.is_set():
                self._beat()
                self._receive(wait_ms)
                self._carry_out()
                self._predict()  # before anything less urgent
                now_ns = clock.now_ns()
                for number in np.flatnonzero(self._ask_ns <= now_ns).tolist():
                    self._ask_ns[number] = self._sessions[number].inbox.ask()
                if now_ns - self._tended_ns >= _TEND_NS or config.clip.fast:
                    self._tended_ns = now_ns
                    self._tend()
                # Live, what has come in the meantime joins the next batch.
                while config.clip.fast and self._predict() and not self._control.stopping.is_set():
                    self._beat()
                self._encode_ahead()
            for session in self._sessions.values():
                session.publish_status("stopped")
        finally:
            for session in self._sessions.values():
                session.inbox.close()
            self._poller.close()

    def _open(self, control: Control) -> Session:
        shared = self._publisher, self._predictor, self._windows, self._resources, self._steps
        session = Session(control, mode_of(control), *shared)
        self._sessions[session.mode.place] = session
        self._wake_ns[session.mode.place] = self._ask_ns[session.mode.place] = 0
        for socket, worker in session.inbox.open(self._poller).items():
            self._worker_at[socket] = session.mode.place, worker
        return session

    def _beat(self) -> None:
        """Send a heartbeat. A turn through hundreds of sessions takes longer, which is no fault."""
        self._control.beat(HEARTBEAT_TIMEOUT_S + _TIMEOUT_PER_SESSION_S * len(self._sessions))

    def _carry_out(self) -> None:
        """Carry out orders; if there are hundreds, some at a time, so that predictions continue meanwhile."""
        now_ns = time.perf_counter_ns()
        until_ns = now_ns + max((now_ns - self._carried_out_ns) // _ORDERS_SHARE, _ORDERS_NS)
        self._carried_out_ns = now_ns
        for order in self._control.take_orders():
            if order.serve is not None:
                self._serve(order.serve)
            elif order.release:
                self._release(order.release)
            else:
                session = self._named(order.session)
                if session is not None:
                    session.carry_out(order)
            if time.perf_counter_ns() > until_ns:
                return

    def _named(self, name: str) -> Session | None:
        """The session with this name; the first if it is empty."""
        return next((s for s in self._sessions.values() if not name or s.config.session == name), None)

    def _serve(self, assignment: Assignment) -> None:
        """Add a session. One that cannot be served is rejected; the others continue."""
        name = assignment.config.session
        self._release(name)
        try:
            if len(self._sessions) >= self._windows.places:
                raise ConfigError(f"there is room for {self._windows.places} sessions")
            self._open(self._control.for_assignment(assignment)).announce()
        except MienError as error:
            self._control.report_state("refused", session=name, run=assignment.run, error=str(error)[:1000])
            self._release(name)
            return
        self._control.report_state("serving", session=name, run=assignment.run)

    def _release(self, name: str) -> None:
        """Remove a session. Nothing of it is sent again to later subscribers."""
        session = self._named(name) if name else None
        if session is None:
            return
        del self._sessions[session.mode.place]
        self._wake_ns[session.mode.place] = self._ask_ns[session.mode.place] = NEVER_NS
        for socket in [socket for socket, (place, _) in self._worker_at.items() if place == session.mode.place]:
            if socket in self._held:
                self._held.remove(socket)
            else:
                self._poller.unregister(socket)
            del self._worker_at[socket]
        session.publish_status("stopped")
        session.inbox.close()
        self._publisher.forget(name)
        self._windows.give_back(session.mode.place)
        self._control.report_state("released", session=name, run=session.control.run)

    def _answer_clock(self, question: bytes) -> list[bytes] | None:
        """The answer to a time request; of several processes behind one address, only one answers."""
        name = question.split(b"/")[1].decode("ascii", "replace") if question.count(b"/") > 1 else ""
        if self._control.assignment.room and (not name or self._named(name) is None):
            return None
        return answer_question(question, self._control.run, self._control.clock)

    def _poll_only_due(self) -> None:
        """Stop polling workers that are ahead of the others: unread messages would end every poll at once."""
        for socket, (number, worker) in self._worker_at.items():
            holds = self._sessions[number].mode.holds_back(worker)
            if holds and socket not in self._held:
                self._held.add(socket)
                self._poller.unregister(socket)
            elif not holds and socket in self._held:
                self._held.remove(socket)
                self._poller.register(socket)

    def _receive(self, wait_ms: int, is_over: Callable[[], bool] | None = None) -> bool:
        """Take in what has come, for a limited time, or until `is_over`. Returns whether anything had."""
        if self._control.assignment.config.clip.fast:
            self._poll_only_due()
        next_ns = min(int(self._wake_ns.min()), int(self._ask_ns.min()))
        until_ms = (next_ns - self._control.clock.now_ns()) // NS_PER_MS + 1
        self._poller.doubt(self._publisher.socket)
        self._steps.did("tend")
        patience_ms = max(min(wait_ms, until_ms), 0)
        ready = self._poller.poll(patience_ms)
        self._steps.did(None if patience_ms else "poll")
        began_ns, whole = time.perf_counter_ns(), True
        for count, socket in enumerate(ready):
            if socket is self._publisher.socket:
                self._publisher.service()
                continue
            number, worker = self._worker_at[socket]
            if self._sessions[number].receive(worker):
                self._poller.trust(socket)
            self._wake_ns[number] = 0
            is_late = time.perf_counter_ns() - began_ns > _RECEIVE_NS
            if is_late or (is_over is not None and count % _ASK_EVERY == _ASK_EVERY - 1 and is_over()):
                self._poller.put_off(ready[count + 1 :])
                whole = False
                break
        now_ns = self._control.clock.now_ns()
        self._read_ns = now_ns if whole else max(self._read_ns, now_ns - _MOST_UNREAD_NS)
        self._steps.did("receive")
        return bool(ready)

    def _tend(self) -> None:
        self._turn = (self._turn + 1) % _TURNS
        turns = min(_TURNS, max(len(self._sessions), 1))
        for number, session in list(self._sessions.items())[self._turn % turns :: _TURNS]:
            session.settle()
            self._ask_ns[number] = session.inbox.ask()  # at once, if a worker with another clock has appeared
            self._wake_ns[number] = min(self._wake_ns[number], session.mode.wake_ns())

    def _predict(self) -> bool:
        """Make one prediction for each session that is due. Returns whether any was."""
        clock, now_ns = self._control.clock, self._control.clock.now_ns()
        self._steps.did("tend")
        due: list[tuple[Session, Trigger]] = []
        for number in np.flatnonzero(self._wake_ns <= now_ns).tolist():
            session = self._sessions[number]
            # Silence counts only until when all was read: else an overloaded process predicts from windows whose newest
            # rows still wait, which takes it the time to read them.
            trigger = session.mode.due(self._read_ns) if session.is_on else None
            if trigger is None:
                self._wake_ns[number] = max(session.mode.wake_ns(), now_ns + (NS_PER_MS if session.is_on else _TEND_NS))
            else:
                due.append((session, trigger))
                self._wake_ns[number] = session.mode.wake_ns()
        if not due:
            return False
        began_ns = clock.now_ns()
        look = self._windows.look([session.mode.place for session, _ in due], [trigger.t_end_ns for _, trigger in due])
        self._steps.did("look")
        evidence: list[Evidence] = []

        def meanwhile(is_done: Callable[[], bool]) -> None:
            if evidence:
                return
            self._steps.did("model")
            for (session, trigger), seen in zip(due, look.seen(), strict=True):
                evidence.append(session.mode.evidence(trigger, seen))
            self._steps.did("publish")
            while not is_done() and self._receive(0, is_done):
                pass

        answers = self._predictor.predict_look(self._windows, look, meanwhile)
        done_ns = clock.now_ns()
        self._steps.did("model")
        meanwhile(lambda: True)  # on a CPU, nothing was done meanwhile
        model = self._predictor.id
        self._publisher.send_all(
            session.predicted(trigger, seen, answer, model, (began_ns, done_ns))
            for (session, trigger), seen, answer in zip(due, evidence, answers.rows(), strict=True)
        )
        self._steps.did("publish")
        self._steps.finish(len(due))
        return True

    def _encode_ahead(self) -> None:
        """Encode new rows of the only session between two predictions, to shorten the latency of the next.

        Several sessions leave no such time: those due at the same time are encoded as a batch, which costs less.
        """
        if len(self._sessions) != 1:
            return
        [session] = self._sessions.values()
        expected = session.mode.expected() if session.is_on else None
        if expected is not None:
            self._steps.did("tend")
            self._predictor.encode_ahead(self._windows, session.mode.place, *expected)
            self._steps.did("model")
