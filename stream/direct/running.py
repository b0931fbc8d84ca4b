"""A session whose workers are threads of this process, with a `LocalSession` collecting their rows."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from mien.clock import Clock
from mien.config import Config
from mien.engines.predictor import Predictor
from mien.messages import WORKERS, FeatureWindow, ModalitySpec, Prediction
from mien.models.checkpoint import check_extractors, load_checkpoint
from mien.stream.direct.local import LocalSession
from mien.stream.modalities.base import Health, Modality, create_modality
from mien.stream.processes.plan import Session

_AT_ONCE = 64  # predictions that may be queued; then the workers wait too
_POLL_S = 0.1
_JOIN_S = 10.0


class Running:
    """A session that runs in threads.

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
        self._modalities: dict[str, Modality] = {}
        self._threads: list[threading.Thread] = []
        self._paced = paced
        self._changed = threading.Condition()
        self._out: queue.Queue[Prediction | None] = queue.Queue(_AT_ONCE)
        self._error: BaseException | None = None
        self._closed = False
        self._streams = False
        self._newest_ns = 0
        try:
            for worker in plan.workers:
                if WORKERS[worker] in {spec.name for spec in checkpoint.specs}:
                    self._modalities[worker] = create(worker, config, Clock())
            self.specs: Mapping[str, ModalitySpec] = {m.spec.name: m.spec for m in self._modalities.values()}
            check_extractors(checkpoint, self.specs.values())
            for modality in self._modalities.values():
                modality.prepare()
            self.predictor = Predictor(checkpoint, config.inference.engine, config.inference.precision)
            self._session = LocalSession(replace(plan, workers=tuple(self._modalities)), self.predictor)
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
            self._predict()

    def predictions(self) -> Iterator[Prediction]:
        """Every instant's prediction, to the last one. For a single consumer thread.

        Raises:
            MienError: a worker failed.
        """
        while True:
            try:
                prediction = self._out.get(timeout=_POLL_S)
            except queue.Empty:
                self.check()
                if self._closed:
                    return
                continue
            if prediction is None:
                self.check()
                return
            yield prediction

    def poll(self) -> tuple[list[Prediction], bool]:
        """The available `predictions` without waiting, and whether they are the last."""
        taken: list[Prediction] = []
        while True:
            try:
                prediction = self._out.get_nowait()
            except queue.Empty:
                self.check()
                return taken, self._closed
            if prediction is None:
                self.check()
                return taken, True
            taken.append(prediction)

    def at(self, t_ns: int) -> Prediction:
        """The prediction for an instant, from the workers' rows so far."""
        with self._changed:
            self.check()
            return self._session.at(t_ns)

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
            health = modality.health()
            with self._changed:
                self._session.note(worker, Health("ended", last_error=health.last_error))
                self._predict()
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
            self._changed.wait_for(lambda: self._closed or self._error is not None or not self._waits(worker))
            self._session.receive(worker, modality.spec, rows)
            self._session.note(worker, health)
            self._newest_ns = max(self._newest_ns, rows.t_end_ns)
            if self._streams:
                self._predict()
            else:
                self._session.settle(self._newest_ns)
            self._changed.notify_all()

    def _waits(self, worker: str) -> bool:
        """Whether a worker must wait: a clip's must not run far ahead; one with pushed input is limited by that."""
        return self._paced and self._session.holds_back(worker)

    def _predict(self) -> None:
        """Predict what is due. Blocks while nobody consumes the predictions, and so does every worker."""
        while self._streams and not self._closed and (prediction := self._session.due()) is not None:
            self._put(prediction)
        if self._streams and self._session.is_over:
            self._put(None)

    def _put(self, item: Prediction | None) -> None:
        while not self._closed:
            try:
                self._out.put(item, timeout=_POLL_S)
                return
            except queue.Full:
                continue
