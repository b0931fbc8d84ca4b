"""Who can have a modality masked, and what unmasks it."""

from __future__ import annotations

from mien.stream.inference.faults import Faults


def test_lost_device_and_its_return_are_reported() -> None:
    faults = Faults()
    faults.note_worker("vision", "camera 0 was lost")
    assert faults.reasons() == {"vision": "camera 0 was lost"}
    faults.note_worker("vision", None)
    assert faults.reasons() == {}


def test_responsive_process_is_unmasked() -> None:
    faults = Faults()
    faults.note_run("text", run=1)
    faults.note_process("text", "does not answer", dead=False)
    faults.note_worker("text", None)  # sent before it fell silent, and still in transit
    assert faults.reasons() == {"text": "does not answer"}
    faults.clear_process("text")
    assert faults.reasons() == {}


def test_only_rows_of_its_successor_end_the_fault_of_a_process_that_died() -> None:
    faults = Faults()
    faults.note_run("text", run=1)
    faults.note_worker("text", "microphone lost")
    faults.note_process("text", "does not answer", dead=False)
    faults.note_process("text", "died", dead=True)
    faults.note_run("text", run=1)  # what it sent last
    faults.clear_process("text")
    assert faults.reasons() == {"text": "died"}
    faults.note_run("text", run=2)
    assert faults.reasons() == {}


def test_restarted_inference_receives_faults_and_their_end() -> None:
    faults = Faults()
    faults.note_process("audio", "died", dead=True)
    assert faults.reasons() == {"audio": "died"}
    faults.note_run("audio", run=7)
    assert faults.reasons() == {}
