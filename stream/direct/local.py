"""A session within one process: rows of its modalities in, predictions out. Not thread-safe; `running` is."""

from __future__ import annotations

import secrets
import time
from collections import Counter

from mien.clock import NS_PER_S
from mien.engines.predictor import Predictor
from mien.engines.rings import Windows
from mien.messages import FeatureWindow, ModalitySpec, Prediction, Status
from mien.stream.inference.about import person_tag, with_person
from mien.stream.inference.faults import Refusals
from mien.stream.inference.playback import Complete
from mien.stream.inference.prediction import Trigger
from mien.stream.modalities.base import Health, message_of
from mien.stream.processes.plan import Session

LOOK_BACK_NS = 4 * NS_PER_S  # maximum age of an instant relative to the newest rows: the ring holds both and the window


class LocalSession:
    """What the inference process does for a clip in full (`Complete`), for one session and without a bus."""

    def __init__(self, plan: Session, predictor: Predictor) -> None:
        self._name = plan.config.session
        self._person = person_tag(plan.config, replayed=False)
        self._predictor = predictor
        self._windows = Windows(predictor.specs)
        self._run = secrets.randbits(48)
        self._sent: Counter[str] = Counter()
        self._mode = Complete(
            plan.config, plan.workers, plan.absent, predictor.specs, self._windows, self._run, Refusals()
        )
        predictor.prepare(self._windows)

    @property
    def is_over(self) -> bool:
        """Whether the last prediction has been made."""
        return self._mode.is_over

    def holds_back(self, worker: str) -> bool:
        """Whether a worker is far ahead of the others and should wait for them."""
        return self._mode.holds_back(worker)

    def receive(self, worker: str, spec: ModalitySpec, rows: FeatureWindow) -> None:
        """Add a worker's rows."""
        message = message_of(rows, spec, session=self._name, run=self._run, seq=self._sent[worker])
        self._sent[worker] += 1
        self._mode.take(message, 0)

    def note(self, worker: str, health: Health) -> None:
        """Record a worker's health; "ended" means that no rows follow."""
        self._mode.note_status(
            Status(
                session=self._name,
                worker=worker,
                run=self._run,
                t_ns=0,
                state=health.state,
                pid=0,
                last_error=health.last_error,
                detail=health.detail,
            )
        )

    def due(self) -> Prediction | None:
        """The next instant's prediction, once every worker has reached it; the last one has seen everything."""
        trigger = self._mode.due(0)
        return None if trigger is None else self._predict(trigger)

    def at(self, t_end_ns: int) -> Prediction:
        """The prediction for an instant, from the rows so far; at most `LOOK_BACK_NS` before the newest rows."""
        self._mode.pass_over(t_end_ns)
        return self._predict(Trigger(t_end_ns))

    def settle(self, newest_ns: int) -> None:
        """Discard instants that will not be requested, so that no rows wait for them."""
        self._mode.pass_over(newest_ns - LOOK_BACK_NS)

    def _predict(self, trigger: Trigger) -> Prediction:
        began_ns = time.monotonic_ns()
        look = self._windows.look([self._mode.place], [trigger.t_end_ns])
        (answer,) = self._predictor.predict_look(self._windows, look).rows()
        done_ns = time.monotonic_ns()
        (seen,) = look.seen()
        model = with_person(self._predictor.id, self._person)
        return self._mode.predicted(trigger, answer, seen, model, (began_ns, done_ns))
