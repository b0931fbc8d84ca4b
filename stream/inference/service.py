"""The inference process: one model, the sessions that it serves, and the socket that predictions leave by."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Sequence

import zmq

from mien.clock import Clock
from mien.config import Config
from mien.engines.predictor import Predictor
from mien.errors import ConfigError
from mien.models.checkpoint import load_checkpoint
from mien.stream.bus.clock_exchange import answer_question
from mien.stream.bus.sockets import Publisher
from mien.stream.inference.served import Served
from mien.stream.modality import WORKERS
from mien.stream.process import Control


def infer(control: Control, others: Sequence[Config] = ()) -> None:
    """Run inference until all clips have ended or it is told to stop.

    Args:
        others: further sessions, with workers of their own, that are predicted by the same process and model and
            published on the same socket.

    Raises:
        ConfigError: two sessions have one name, or one worker.
        MienError: the checkpoint, the engine or the port is not to be had.
    """
    config = control.assignment.config
    _check_apart([config, *others])
    publisher = Publisher(config.bus.endpoint("inference"), config.bus, lossless=config.clip.fast)
    publisher.tell_time(lambda question: answer_question(question, control.run, control.clock))
    try:
        checkpoint = load_checkpoint(config.inference.checkpoint)
        predictor = Predictor(checkpoint, config.inference.engine, config.inference.precision)
        controls = [control, *(control.sibling(other) for other in others)]
        _serve(control, publisher, predictor, [Served(each, publisher, predictor) for each in controls])
    finally:
        publisher.close()


def _check_apart(configs: Sequence[Config]) -> None:
    for what, used in (
        ("the name", [config.session for config in configs]),
        ("the address of a worker", [config.bus.address(worker) for config in configs for worker in WORKERS]),
    ):
        twice = [value for value, count in Counter(used).items() if count > 1]
        if twice:
            raise ConfigError(f"two sessions have {what} {twice[0]!r}; give each its own `session` and `bus.port`")


def _serve(control: Control, publisher: Publisher, predictor: Predictor, sessions: Sequence[Served]) -> None:
    """Predict all sessions; what is due together is predicted together."""
    config = control.assignment.config
    poller = zmq.Poller()
    poller.register(publisher.socket, zmq.POLLIN)
    try:
        for session in sessions:
            session.open(poller)
        # What is loaded by now stays; scanning it again and again would only add to the slowest predictions.
        gc.collect()
        gc.freeze()
        for session in sessions:
            session.announce()
        wait_ms = 1 if config.clip.fast else min(config.inference.hop_ms, 50)
        while not control.stopping.is_set():
            control.beat()
            poller.poll(wait_ms)
            publisher.service()
            for session in sessions:
                session.take_in()
            while _predict(predictor, sessions, control.clock):
                pass
            for session in sessions:
                session.settle()
        for session in sessions:
            session.publish_status("stopped")
    finally:
        for session in sessions:
            session.close()


def _predict(predictor: Predictor, sessions: Sequence[Served], clock: Clock) -> bool:
    """One prediction for each session that is due. Returns whether any was."""
    due = [(session, found) for session in sessions if (found := session.due()) is not None]
    began_ns = clock.now_ns()
    outputs = iter(predictor.predict_many([found.window for _, found in due if found.is_observed]))
    done_ns = clock.now_ns()
    for session, found in due:
        session.publish(found, next(outputs) if found.is_observed else None, began_ns, done_ns)
    return bool(due)
