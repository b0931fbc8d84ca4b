"""A session within one process: its workers are threads, and predictions are made as for a clip in full."""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from mien.clock import NS_PER_S, Clock
from mien.config import Config
from mien.engines.predictor import Predictor
from mien.engines.rings import Windows
from mien.messages import WORKERS, FeatureWindow, ModalitySpec, Prediction, Status
from mien.models.checkpoint import check_extractors, load_checkpoint
from mien.stream.inference.about import person_tag, with_person
from mien.stream.inference.playback import Complete
from mien.stream.inference.prediction import Trigger
from mien.stream.modalities.base import Health, Modality, create_modality, message_of
from mien.stream.processes.plan import Session

LOOK_BACK_NS = 4 * NS_PER_S  # maximum age of an instant relative to the newest rows: the ring holds both and the window
_AT_ONCE = 64  # predictions that may be queued; then the workers wait too
_POLL_S = 0.1
_JOIN_S = 10.0


class LocalSession:
    """A session that runs in threads, without a bus.

    Args:
        plan: what is captured, with `clip.fast`: nothing is dropped.
        create: makes a worker's modality; by default from the plan's sources.
        paced: whether a worker that is far ahead waits for the others, as those of a clip in full do.

    Attributes:
        predictor: the model. specs: of the workers' rows, by modality.

    Raises:
        MienError: a model, an asset or a source is missing or cannot be used.
    """

    def __init__(
        self,
        plan: Session,
        *,
        create: Callable[[str, Config, Clock], Modality] = create_modality,
        paced: bool = True,
    ) -> None:
        config = plan.config
        checkpoint = load_checkpoint(config.inference.checkpoint)
        self._name, self._person = config.session, person_tag(config, replayed=False)
        self._modalities: dict[str, Modality] = {}
        self._threads: list[threading.Thread] = []
        self._paced = paced
        self._changed = threading.Condition()  # guards the windows and the mode, too
        self._out: queue.Queue[Prediction | None] = queue.Queue(_AT_ONCE)
        self._error: BaseException | None = None
        self._closed = self._streams = self._is_over = False
        self._newest_ns = 0
        self._run = secrets.randbits(48)
        self._sent: Counter[str] = Counter()
        try:
            for worker in plan.workers:
                if WORKERS[worker] in {spec.name for spec in checkpoint.specs}:
                    self._modalities[worker] = create(worker, config, Clock())
            self.specs: Mapping[str, ModalitySpec] = {m.spec.name: m.spec for m in self._modalities.values()}
            check_extractors(checkpoint, self.specs.values())
            for modality in self._modalities.values():
                modality.prepare()
            self.predictor = Predictor(checkpoint, config.inference.engine, config.inference.precision)
            self._windows = Windows(self.predictor.specs)
            workers, specs = tuple(self._modalities), self.predictor.specs
            self._mode = Complete(config, workers, plan.absent, specs, self._windows, self._run)
            self.predictor.prepare(self._windows)
        except BaseException:
            self._release()
            raise

    def start(self, *, streams: bool, left: Callable[[str], None] = lambda _: None) -> None:
        """Start.

        Args:
            streams: predict every instant, for `predictions`; otherwise only those passed to `at`.
            left: called with a worker's name when its thread ends.
        """
        self._streams = streams
        for worker, modality in self._modalities.items():
            work = threading.Thread(
                target=self._work, args=(worker, modality, left), name=f"mien-{worker}", daemon=True
            )
            self._threads.append(work)
            work.start()

    def stream(self) -> None:
        """From now on, predict every instant."""
        with self._changed:
            self._streams = True
            self._predict_due()

    def predictions(self) -> Iterator[Prediction]:
        """Every instant's prediction, to the last one. For a single consumer thread.

        Raises:
            MienError: a worker failed.
        """
        over = False
        while not over:
            predictions, over = self.poll(_POLL_S)
            yield from predictions

    def poll(self, timeout_s: float = 0.0) -> tuple[list[Prediction], bool]:
        """The available `predictions`, waiting for the first, and whether there will be no more.

        Raises:
            MienError: a worker failed; the predictions before come first.
        """
        taken: list[Prediction] = []
        try:
            while not self._is_over:
                prediction = self._out.get(bool(timeout_s) and not taken, timeout_s)
                if prediction is None:
                    self._is_over = True
                else:
                    taken.append(prediction)
        except queue.Empty:
            pass
        if not taken:
            self.check()
        return taken, not taken and (self._is_over or self._closed)

    def at(self, t_ns: int) -> Prediction:
        """The prediction for an instant, from the rows so far; at most `LOOK_BACK_NS` before the newest rows."""
        with self._changed:
            self.check()
            self._mode.pass_over(t_ns)
            return self._predict(Trigger(t_ns))

    def check(self) -> None:
        """Raise a worker's error, if any."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Stop the threads and release the models. May be called twice."""
        self._closed = True  # before the lock, which a worker holds while its prediction waits to be consumed
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(_JOIN_S)
        self._release()

    def _release(self) -> None:
        for modality in self._modalities.values():
            modality.close()

    def _work(self, worker: str, modality: Modality, left: Callable[[str], None]) -> None:
        try:
            modality.start(0)
            for rows in modality.rows():
                if self._closed:
                    return
                if rows is not None:
                    self._receive(worker, modality, rows)
            with self._changed:
                self._note(worker, Health("ended", last_error=modality.health().last_error))
                self._predict_due()
                self._changed.notify_all()
        except BaseException as error:
            self._error = error
            with self._changed:
                self._changed.notify_all()
            self._put(None)
        finally:
            left(worker)

    def _receive(self, worker: str, modality: Modality, rows: FeatureWindow) -> None:
        health = modality.health()
        if health.state == "ended":  # the source has ended; rows of what was read may still follow
            health = Health("running", detail=health.detail)
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or self._error is not None or not (self._paced and self._mode.holds_back(worker))
            )
            message = message_of(rows, modality.spec, session=self._name, run=self._run, seq=self._sent[worker])
            self._sent[worker] += 1
            self._mode.take(message, 0)
            self._note(worker, health)
            self._newest_ns = max(self._newest_ns, rows.t_end_ns)
            if self._streams:
                self._predict_due()
            else:
                # Instants that will not be requested: no rows wait for them.
                self._mode.pass_over(self._newest_ns - LOOK_BACK_NS)
            self._changed.notify_all()

    def _note(self, worker: str, health: Health) -> None:
        """Record a worker's health; "ended" means that no rows follow."""
        status = Status(
            session=self._name,
            worker=worker,
            run=self._run,
            t_ns=0,
            state=health.state,
            pid=0,
            last_error=health.last_error,
            detail=health.detail,
        )
        self._mode.note_status(status)

    def _predict_due(self) -> None:
        """Predict what is due. Blocks while nobody consumes the predictions, and so does every worker."""
        while self._streams and not self._closed and (trigger := self._mode.due(0)) is not None:
            self._put(self._predict(trigger))
        if self._streams and self._mode.is_over:
            self._put(None)

    def _predict(self, trigger: Trigger) -> Prediction:
        began_ns = time.monotonic_ns()
        look = self._windows.look([self._mode.place], [trigger.t_end_ns])
        (answer,) = self.predictor.predict_look(self._windows, look).rows()
        done_ns = time.monotonic_ns()
        (seen,) = look.seen()
        model = with_person(self.predictor.id, self._person)
        return self._mode.predicted(trigger, self._mode.evidence(trigger, seen), answer, model, (began_ns, done_ns))

    def _put(self, item: Prediction | None) -> None:
        while not self._closed:
            try:
                self._out.put(item, timeout=_POLL_S)
                return
            except queue.Full:
                continue
