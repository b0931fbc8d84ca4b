"""Subscribing, over real sockets."""

from __future__ import annotations

import asyncio
import pydoc
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

import mien
from mien.cli import app
from mien.config import BusConfig
from mien.errors import BusError
from mien.messages import Prediction
from mien.stream.bus.keyring import Keyring
from mien.stream.bus.sockets import Publisher
from mien.stream.bus.subscriber import Subscriber
from mien.stream.bus.wire import encode_prediction, encode_status
from tests.stream.bus.test_wire import PREDICTION, STATUS
from tests.waiting import wait_for_items, wait_until


@pytest.fixture
def publisher(port: int) -> Iterator[Publisher]:
    publisher = Publisher(f"tcp://127.0.0.1:{port}", BusConfig(high_water_mark=1000))
    yield publisher
    publisher.close()


@contextmanager
def served(publisher: Publisher) -> Iterator[None]:
    """A publisher that answers subscriptions in its own thread."""
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            publisher.service()
            time.sleep(0.005)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def numbered(seq: int, run: int = 1) -> Prediction:
    return msgspec.structs.replace(PREDICTION, seq=seq, run=run)


def collect(publisher: Publisher, subscriber: Subscriber, count: int) -> list[Prediction]:
    return wait_for_items(subscriber.poll, count, meanwhile=publisher.service)


def test_predictions_arrive_once_and_in_order_though_the_last_is_sent_again(publisher: Publisher) -> None:
    with Subscriber(publisher.endpoint) as subscriber:
        wait_until(lambda: publisher.subscriptions, meanwhile=publisher.service)
        for seq in range(5):
            publisher.send(encode_prediction(numbered(seq)))
        assert [p.seq for p in collect(publisher, subscriber, 5)] == list(range(5))
        with Subscriber(publisher.endpoint) as second:
            assert [p.seq for p in collect(publisher, second, 1)] == [4]
        time.sleep(0.05)
        assert subscriber.poll() == []
        assert subscriber.lost == 0


def test_gaps_are_counted_but_not_restarts(publisher: Publisher) -> None:
    with Subscriber(publisher.endpoint) as subscriber:
        wait_until(lambda: publisher.subscriptions, meanwhile=publisher.service)
        for seq, run in ((0, 1), (1, 1), (5, 1), (0, 2), (1, 2)):
            publisher.send(encode_prediction(numbered(seq, run)))
        collect(publisher, subscriber, 5)
        assert subscriber.lost == 3


def test_last_loss_is_told_from_silence(publisher: Publisher) -> None:
    """Statuses tell how far inference has counted: losses are known without a later prediction."""
    inference = msgspec.structs.replace(STATUS, worker="inference", run=1)
    with Subscriber(publisher.endpoint) as subscriber:
        wait_until(lambda: publisher.subscriptions, meanwhile=publisher.service)
        publisher.send(encode_prediction(numbered(0)))
        publisher.send(encode_status(msgspec.structs.replace(inference, next_seq=1)))
        wait_until(lambda: subscriber.poll() is None or "inference" in subscriber.statuses, meanwhile=publisher.service)
        assert subscriber.lost == 0, "it is silent, and nothing is missing"
        publisher.send(encode_status(msgspec.structs.replace(inference, next_seq=4)))
        wait_until(lambda: subscriber.poll() is None or subscriber.lost, meanwhile=publisher.service)
        assert subscriber.lost == 3
        publisher.send(encode_status(msgspec.structs.replace(inference, run=2, next_seq=9)))
        publisher.send(encode_prediction(numbered(4)))
        assert [p.seq for p in collect(publisher, subscriber, 1)] == [4]
        assert subscriber.lost == 3, "another run's numbers say nothing of this one's"


def test_garbage_is_counted_and_other_messages_arrive(publisher: Publisher) -> None:
    with Subscriber(publisher.endpoint) as subscriber:
        wait_until(lambda: publisher.subscriptions, meanwhile=publisher.service)
        publisher.send([b"prediction/default/", b"\x01", b"{nonsense"], keep=False)
        publisher.send([b"prediction/default/", b"\x63", b"{}"], keep=False)
        publisher.send([b"status/default/video", b"\x01"], keep=False)
        publisher.send(encode_status(STATUS))
        publisher.send(encode_prediction(numbered(0)))
        assert len(collect(publisher, subscriber, 1)) == 1
        assert subscriber.refused == {"malformed": 2, "version": 1}
        assert subscriber.statuses["video"] == STATUS


def test_newest_only_skips_and_counts(publisher: Publisher) -> None:
    with Subscriber(publisher.endpoint, newest_only=True) as subscriber:
        wait_until(lambda: publisher.subscriptions, meanwhile=publisher.service)
        for seq in range(10):
            publisher.send(encode_prediction(numbered(seq)))
        time.sleep(0.3)
        numbers = [p.seq for p in subscriber.poll()]
        while 9 not in numbers:  # on a machine that is busy some have not come yet
            numbers += [p.seq for p in subscriber.poll()]
        assert len(numbers) + subscriber.skipped == 10
        assert subscriber.skipped > 0
        assert subscriber.lost == 0


def test_one_session_only(publisher: Publisher) -> None:
    with Subscriber(publisher.endpoint, session="mine") as subscriber:
        wait_until(lambda: publisher.subscriptions, meanwhile=publisher.service)
        publisher.send(encode_prediction(msgspec.structs.replace(PREDICTION, session="other")))
        publisher.send(encode_prediction(msgspec.structs.replace(PREDICTION, session="mine")))
        assert [p.session for p in collect(publisher, subscriber, 1)] == ["mine"]


def test_sync_and_async_generators(publisher: Publisher) -> None:
    stop = threading.Event()

    def feed() -> None:
        seq = 0
        while not stop.is_set():
            publisher.send(encode_prediction(numbered(seq)))
            seq += 1
            time.sleep(0.005)

    async def first_three() -> list[int]:
        numbers: list[int] = []
        async for prediction in mien.subscribe_async(publisher.endpoint, timeout_s=10):
            numbers.append(prediction.seq)
            if len(numbers) == 3:
                break
        return numbers

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        numbers = []
        for prediction in mien.subscribe(publisher.endpoint, timeout_s=10):
            numbers.append(prediction.seq)
            if len(numbers) == 3:
                break
        assert numbers == sorted(set(numbers))
        later = asyncio.run(first_three())
        assert later == sorted(set(later))
    finally:
        stop.set()
        feeder.join()


def test_silence_is_an_error_with_advice(port: int) -> None:
    with pytest.raises(BusError, match=r"nothing came.*mien run"):
        next(mien.subscribe(f"tcp://127.0.0.1:{port}", timeout_s=0.2))


def refusal(ask: Callable[[float], object], message: str) -> str:
    """The error of `ask(seconds)`, with more time if the others have not been received yet."""
    for seconds in (0.2, 2.0, 20.0):
        with pytest.raises(BusError) as raised:
            ask(seconds)
        if message in str(raised.value):
            break
    return str(raised.value)


def run_status(endpoint: str, *arguments: str) -> None:
    result = CliRunner().invoke(app, ["status", endpoint, *arguments])
    if result.exception is not None:
        raise result.exception


def test_missing_session_is_reported_with_the_running_ones(publisher: Publisher) -> None:
    inference = msgspec.structs.replace(STATUS, worker="inference")
    for name in ("first", "second"):
        publisher.send(encode_status(msgspec.structs.replace(inference, session=name)))
    with served(publisher):

        def first(seconds: float) -> Prediction:
            return next(mien.subscribe(publisher.endpoint, session="nosuch", timeout_s=seconds))

        async def first_async(seconds: float) -> Prediction:
            return await anext(mien.subscribe_async(publisher.endpoint, session="nosuch", timeout_s=seconds))

        sessions = "heard there: first, second"
        assert re.search(f"no session 'nosuch' .* {sessions}", refusal(first, sessions))
        assert sessions in refusal(lambda seconds: asyncio.run(first_async(seconds)), sessions)
        arguments = publisher.endpoint, "--session", "nosuch", "--timeout"
        assert sessions in refusal(lambda seconds: run_status(*arguments, str(seconds)), sessions)


def test_worker_port_is_recognised(publisher: Publisher) -> None:
    publisher.send(encode_status(STATUS))
    port = int(publisher.endpoint.rpartition(":")[2])
    with served(publisher):
        message = f"is the video worker's, 1 above that of predictions; use tcp://127.0.0.1:{port - 1}"
        assert message in refusal(lambda seconds: run_status(publisher.endpoint, "--timeout", str(seconds)), message)
        assert message in refusal(lambda seconds: next(mien.subscribe(publisher.endpoint, timeout_s=seconds)), message)


def test_module_exports_what_callers_need() -> None:
    assert {"subscribe", "subscribe_async", "BusError", "KeysError", "MienError"} <= set(dir(mien)) & set(mien.__all__)
    assert all(hasattr(mien, name) for name in mien.__all__)
    page = pydoc.plain(pydoc.render_doc(mien))
    assert "subscribe(endpoint" in page
    assert "async subscribe_async(endpoint" in page or "subscribe_async(endpoint" in page


@pytest.mark.parametrize("endpoint", ["127.0.0.1:5560", "tcp://127.0.0.1", "tcp://127.0.0.1:65536"])
def test_invalid_address_is_a_clear_error(endpoint: str) -> None:
    with pytest.raises(BusError, match="not an endpoint"):
        next(mien.subscribe(endpoint))


def test_silence_for_want_of_keys_says_so(tmp_path: Path, port: int) -> None:
    Keyring(tmp_path).create()
    publisher = Publisher(f"tcp://127.0.0.1:{port}", BusConfig(keys=str(tmp_path)))
    with served(publisher):
        message = "requires keys"
        assert message in refusal(lambda seconds: next(mien.subscribe(publisher.endpoint, timeout_s=seconds)), message)
    publisher.close()
