"""What counts as a gap, and what as its explanation."""

from __future__ import annotations

import time

import msgspec

from mien.messages import Status
from mien.stream.bench.chaos import GapLog
from tests.stream.bus.test_wire import PREDICTION, STATUS

WELL = msgspec.structs.replace(STATUS, worker="video", state="running", last_error=None, drops={})
MASKED = msgspec.structs.replace(PREDICTION, absent={"vision": "nothing received for 0.4 s"})
SEEN = msgspec.structs.replace(PREDICTION, absent={})


def log_of(*statuses: Status) -> GapLog:
    """A log of a face, then a mask, with these statuses in between."""
    log = GapLog(("video",))
    log.add_statuses({"video": msgspec.structs.replace(WELL, t_ns=1)})
    log.add_prediction(SEEN)
    log.add_prediction(MASKED)
    for status in statuses:
        log.add_statuses({status.worker: status})
    log.add_prediction(SEEN)
    return log


def test_a_mask_without_a_reason_is_unexplained() -> None:
    since_s = time.monotonic()
    assert log_of().unexplained(since_s) == ["vision masked for 0.0 s"]
    assert log_of(WELL).unexplained(since_s) == ["vision masked for 0.0 s"]


def test_a_state_a_new_error_or_a_lag_explains_it() -> None:
    since_s = time.monotonic()
    for changes in ({"state": "failed"}, {"last_error": "camera lost"}, {"lag_ms": 9000.0}):
        assert log_of(msgspec.structs.replace(WELL, **changes)).unexplained(since_s) == []
    supervisor = msgspec.structs.replace(WELL, worker="supervisor", state="degraded")
    assert log_of(supervisor).unexplained(since_s) == []
    inference = msgspec.structs.replace(
        WELL, worker="inference", detail={"absent.vision": "nothing received for 0.4 s"}
    )
    assert log_of(inference).unexplained(since_s) == []
    inference = msgspec.structs.replace(WELL, worker="inference", detail={"absent.text": "switched off"})
    assert log_of(inference).unexplained(since_s)


def test_another_workers_status_does_not_explain_it() -> None:
    since_s = time.monotonic()
    audio = msgspec.structs.replace(WELL, worker="audio", state="failed")
    assert log_of(audio).unexplained(since_s) == ["vision masked for 0.0 s"]


def test_only_a_recent_error_explains_a_mask() -> None:
    log = GapLog(("video",))
    failed = msgspec.structs.replace(WELL, last_error="long ago")
    for _ in range(1200):
        # Only the first of these is news; the others crowd out what it explained.
        log.add_statuses({"video": failed, "audio": msgspec.structs.replace(WELL, worker="audio", state="degraded")})
    log.forget()
    since_s = time.monotonic()
    log.add_prediction(MASKED)
    log.add_statuses({"video": msgspec.structs.replace(failed, t_ns=9)})
    assert log.unexplained(since_s) == ["vision masked for 0.0 s"]


def test_masks_of_modalities_that_are_not_captured_are_explained() -> None:
    log = GapLog(())
    since_s = time.monotonic()
    log.add_prediction(MASKED)
    assert log.unexplained(since_s) == []


def test_silence_is_a_gap() -> None:
    log = GapLog(())
    since_s = time.monotonic() - 3.0
    log.add_prediction(SEEN)
    assert log.unexplained(since_s) == ["silence of 3.0 s"]
    log.add_statuses({"supervisor": msgspec.structs.replace(WELL, worker="supervisor", state="degraded")})
    assert log.unexplained(since_s) == []
