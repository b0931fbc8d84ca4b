"""Who may say that a modality is not to be believed, and what ends that."""

from __future__ import annotations

from mien.stream.inference.faults import Faults


def test_a_worker_says_that_its_device_is_lost_and_that_it_is_back() -> None:
    faults = Faults()
    faults.say("vision", "camera 0 was lost")
    assert faults.reasons() == {"vision": "camera 0 was lost"}
    faults.say("vision", None)
    assert faults.reasons() == {}


def test_a_process_that_does_not_answer_is_believed_again_when_it_does() -> None:
    faults = Faults()
    faults.hear("text", run=1)
    faults.blame("text", "does not answer", dead=False)
    faults.say("text", None)  # said before it fell silent, and still under way
    assert faults.reasons() == {"text": "does not answer"}
    faults.answers("text")
    assert faults.reasons() == {}


def test_only_rows_of_its_successor_end_the_fault_of_a_process_that_died() -> None:
    faults = Faults()
    faults.hear("text", run=1)
    faults.say("text", "microphone lost")
    faults.blame("text", "does not answer", dead=False)
    faults.blame("text", "died", dead=True)
    faults.hear("text", run=1)  # what it sent last
    faults.answers("text")
    assert faults.reasons() == {"text": "died"}
    faults.hear("text", run=2)
    assert faults.reasons() == {}


def test_inference_that_was_started_again_learns_of_a_fault_and_of_its_end() -> None:
    faults = Faults()
    faults.blame("audio", "died", dead=True)
    assert faults.reasons() == {"audio": "died"}
    faults.hear("audio", run=7)
    assert faults.reasons() == {}
