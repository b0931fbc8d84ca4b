"""What counts as a gap, and what as its explanation."""

from __future__ import annotations

import time

import msgspec

from mien.messages import Status
from mien.stream.bench.witness import Witness
from tests.stream.bus.test_wire import PREDICTION, STATUS

WELL = msgspec.structs.replace(STATUS, worker="video", state="running", last_error=None, drops={})
MASKED = msgspec.structs.replace(PREDICTION, absent={"vision": "nothing received for 0.4 s"})
SEEN = msgspec.structs.replace(PREDICTION, absent={})


def witness_of(*statuses: Status) -> Witness:
    """One that sees a face, then a mask, and hears these statuses meanwhile."""
    witness = Witness(("video",))
    witness.hear({"video": msgspec.structs.replace(WELL, t_ns=1)})
    witness.see(SEEN)
    witness.see(MASKED)
    for status in statuses:
        witness.hear({status.worker: status})
    witness.see(SEEN)
    return witness


def test_a_mask_of_which_nobody_said_why_is_unexplained() -> None:
    since_s = time.monotonic()
    assert witness_of().unexplained(since_s) == ["vision masked for 0.0 s"]
    assert witness_of(WELL).unexplained(since_s) == ["vision masked for 0.0 s"]


def test_a_state_a_new_error_or_a_lag_explains_it() -> None:
    since_s = time.monotonic()
    for changes in ({"state": "failed"}, {"last_error": "camera lost"}, {"lag_ms": 9000.0}):
        assert witness_of(msgspec.structs.replace(WELL, **changes)).unexplained(since_s) == []
    supervisor = msgspec.structs.replace(WELL, worker="supervisor", state="degraded")
    assert witness_of(supervisor).unexplained(since_s) == []
    inference = msgspec.structs.replace(
        WELL, worker="inference", detail={"absent.vision": "nothing received for 0.4 s"}
    )
    assert witness_of(inference).unexplained(since_s) == []
    inference = msgspec.structs.replace(WELL, worker="inference", detail={"absent.text": "switched off"})
    assert witness_of(inference).unexplained(since_s)


def test_what_another_worker_says_does_not() -> None:
    since_s = time.monotonic()
    audio = msgspec.structs.replace(WELL, worker="audio", state="failed")
    assert witness_of(audio).unexplained(since_s) == ["vision masked for 0.0 s"]


def test_an_error_explains_when_it_is_new_and_not_for_ever() -> None:
    witness = Witness(("video",))
    said = msgspec.structs.replace(WELL, last_error="long ago")
    for _ in range(1200):
        # Only the first of these is news; the others crowd out what it explained.
        witness.hear({"video": said, "audio": msgspec.structs.replace(WELL, worker="audio", state="degraded")})
    witness.forget()
    since_s = time.monotonic()
    witness.see(MASKED)
    witness.hear({"video": msgspec.structs.replace(said, t_ns=9)})
    assert witness.unexplained(since_s) == ["vision masked for 0.0 s"]


def test_masks_of_what_nobody_captures_are_on_purpose() -> None:
    witness = Witness(())
    since_s = time.monotonic()
    witness.see(MASKED)
    assert witness.unexplained(since_s) == []


def test_silence_is_a_gap() -> None:
    witness = Witness(())
    since_s = time.monotonic() - 3.0
    witness.see(SEEN)
    assert witness.unexplained(since_s) == ["silence of 3.0 s"]
    witness.hear({"supervisor": msgspec.structs.replace(WELL, worker="supervisor", state="degraded")})
    assert witness.unexplained(since_s) == []
