"""Subscribers to some fields, or fewer predictions, get exactly these; all others see no change."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import msgspec
import pytest
import zmq

import mien
from mien.config import BusConfig
from mien.errors import InputError, WireError
from mien.messages import Prediction
from mien.stream.bus.parts import ALWAYS, FIELDS, decode_part, part_topic, read_part
from mien.stream.bus.sockets import Publisher
from mien.stream.bus.subscriber import Subscriber
from mien.stream.bus.wire import encode_prediction
from tests.stream.bus.test_sockets import wait_for
from tests.stream.bus.test_subscriber import served
from tests.stream.bus.test_wire import PREDICTION
from tests.waiting import wait_for_items


@pytest.fixture
def publisher(port: int) -> Iterator[Publisher]:
    publisher = Publisher(f"tcp://127.0.0.1:{port}", BusConfig(high_water_mark=1000))
    yield publisher
    publisher.close()


def predictions(count: int, session: str = PREDICTION.session) -> list[Prediction]:
    """At 25 a second."""
    return [
        msgspec.structs.replace(PREDICTION, session=session, seq=seq, t_end_ns=10**18 + seq * 40_000_000)
        for seq in range(count)
    ]


def publish(publisher: Publisher, prediction: Prediction) -> None:
    """As inference does."""
    publisher.send_parts(prediction)
    publisher.send(encode_prediction(prediction))


def test_only_chosen_parts_are_sent(publisher: Publisher) -> None:
    plain: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
    plain.connect(publisher.endpoint)
    plain.subscribe(b"prediction/")
    with Subscriber(publisher.endpoint, fields=("sentiment", "top_emotion")) as chosen:
        wait_for(lambda: len(publisher.subscriptions) >= 3, publisher)
        for prediction in predictions(5):
            publish(publisher, prediction)
        got = wait_for_items(chosen.poll, 5, meanwhile=publisher.service)
        seen = [plain.recv_multipart() for _ in range(5)]
        assert chosen.lost == 0
    plain.close(0)
    assert seen == [encode_prediction(prediction) for prediction in predictions(5)]
    for made, whole in zip(got, predictions(5), strict=True):
        assert (made.sentiment, made.top_emotion) == (whole.sentiment, whole.top_emotion)
        assert (made.seq, made.run, made.t_end_ns, made.t_end_us) == (
            whole.seq, whole.run, whole.t_end_ns, whole.t_end_us
        )  # fmt: skip
        assert made.emotions is None
        assert made.words == ()


def test_thinned_predictions_are_no_loss_and_each_session_has_its_rate(publisher: Publisher) -> None:
    with (
        Subscriber(publisher.endpoint, rate_hz=5) as every,
        Subscriber(publisher.endpoint, session="b", rate_hz=1) as b,
    ):
        wait_for(lambda: len(publisher.parts) >= 2, publisher)
        for pair in zip(predictions(100, "a"), predictions(100, "b"), strict=True):
            for prediction in pair:
                publish(publisher, prediction)
        got = wait_for_items(every.poll, 40, meanwhile=publisher.service)
        slow = wait_for_items(b.poll, 4, meanwhile=publisher.service)
        assert every.lost == b.lost == 0
    assert {each.session: [p.seq for p in got if p.session == each.session] for each in got} == {
        name: list(range(0, 100, 5)) for name in "ab"
    }
    assert [(p.session, p.seq) for p in slow] == [("b", seq) for seq in (0, 22, 44, 66, 88)]
    assert slow[0] == predictions(1, "b")[0]
    wait_for(lambda: not publisher.parts, publisher)


def test_both_subscriber_forms_receive_parts(publisher: Publisher) -> None:
    with served(publisher):

        async def first() -> Prediction:
            async for prediction in mien.subscribe_async(publisher.endpoint, fields=["sentiment"], timeout_s=20):
                return prediction
            raise AssertionError

        async def both() -> Prediction:
            task = asyncio.ensure_future(first())
            while not task.done():
                if publisher.parts:
                    publisher.send_parts(predictions(1)[0])
                await asyncio.sleep(0.02)
            return task.result()

        assert asyncio.run(both()).sentiment == PREDICTION.sentiment
    with pytest.raises(InputError, match="no field 'feeling'; it has sentiment,"):
        next(mien.subscribe(publisher.endpoint, fields=["feeling"]))
    with pytest.raises(InputError, match=r"rate_hz is 0\.001 to 9999"):
        next(mien.subscribe(publisher.endpoint, rate_hz=0))
    with pytest.raises(InputError, match="fields is a list"):
        next(mien.subscribe(publisher.endpoint, fields="sentiment"))


@pytest.mark.parametrize(
    "topic",
    [
        b"part/", b"part/default", b"part/default/5", b"part/a b/5/sentiment", b"part/default/-1/sentiment",
        b"part/default/nan/sentiment", b"part/default/1e9/sentiment", b"part/default/5/feeling",
        b"part/default/5/sentiment,sentiment", b"part/default/5/sentiment/more", b"part/\xff/5/sentiment",
        b"part/*/5/__class__",
    ],
)  # fmt: skip
def test_empty_part_topics_are_ignored(topic: bytes) -> None:
    assert read_part(topic) is None


def test_topics_are_short_enough_for_every_choice() -> None:
    longest = part_topic("s" * 64, FIELDS, 1234.567)
    assert len(longest) < 320 - 1
    choice = read_part(longest)
    assert choice is not None
    assert decode_part(choice.message(msgspec.structs.replace(PREDICTION, session="s" * 64)) or []) is not None
    assert not set(ALWAYS) & set(FIELDS)


def test_a_flood_of_parts_is_bounded(publisher: Publisher) -> None:
    greedy: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
    greedy.connect(publisher.endpoint)
    for rate in range(1, 200):
        greedy.subscribe(f"part/*/{rate}/sentiment".encode())
    wait_for(lambda: len(publisher.subscriptions) >= 199, publisher)
    assert len(publisher.parts) == 64
    greedy.close(0)
    wait_for(lambda: not publisher.parts, publisher)


@pytest.mark.parametrize(
    "payload", [b"", b"[]", b"{}", b'{"session":1}', b'{"session":"a","run":1,"seq":-1,"t_end_ns":0}']
)
def test_damaged_parts_are_refused(payload: bytes) -> None:
    with pytest.raises(WireError):
        decode_part([b"part/a/0/sentiment", b"\x01", payload])
