"""What a replay runs with: the recorded settings of inference, and a check that the recorded features fit its model."""

from __future__ import annotations

from typing import Any

import msgspec

from mien.config import Config, InferenceConfig, PersonConfig
from mien.errors import CheckpointError, RecordingError
from mien.models.checkpoint import Checkpoint, load_checkpoint
from mien.stream.inference.about import tag_of
from mien.stream.processes.plan import Session
from mien.stream.recording import channels
from mien.stream.recording.reader import Recording


def plan_replay(
    recording: Recording,
    config: Config,
    *,
    speed: float,
    checkpoint: str | None = None,
    engine: str | None = None,
) -> Session:
    """The session that replays a recording.

    Args:
        config: the user's; its bus counts. Whatever decides numbers is taken from the recording.
        speed: 0 is as fast as possible.
        checkpoint, engine: others than the recorded ones.

    Raises:
        RecordingError: there is nothing to replay.
        CheckpointError: the model needs other features than the recorded ones.
    """
    if channels.PREDICTION not in recording.channels:
        raise RecordingError(f"{recording.path} holds no predictions, so there is nothing to replay")
    recorded = recorded_inference(recording)
    inference = msgspec.structs.replace(
        recorded,
        checkpoint=recorded.checkpoint if checkpoint is None else checkpoint,
        engine=engine or recorded_engine(recording),
    )
    try:
        weights = load_checkpoint(inference.checkpoint)
    except CheckpointError as error:
        if checkpoint is not None:
            raise
        raise CheckpointError(
            f"{error} (the recording was made with these weights; name others with --checkpoint)"
        ) from error
    check_features(recording, weights)
    return Session(
        config=msgspec.structs.replace(
            config,
            session=recording.session,
            person=recorded_person(recording),
            inference=inference,
            clip=msgspec.structs.replace(config.clip, fast=speed == 0, loop=False),
        ),
        workers=(),
        absent={},
        notes=(),
        label=recording.path.name,
        origin="replay",
    )


def has_other_clocks(recording: Recording) -> bool:
    """Whether capture ran on other machines.

    Inference then moved their times into its own, by an offset that is measured as it goes and is not recorded, so that
    a replay is equal only where no row falls into another slot for it.
    """
    workers: dict[str, str] = recording.about.config.get("bus", {}).get("workers", {}) if recording.about else {}
    return any(workers.values())


def recorded_inference(recording: Recording) -> InferenceConfig:
    """Settings of inference when the recording was made; what this mien does not know is left out."""
    found: dict[str, Any] = recording.about.config.get("inference", {}) if recording.about is not None else {}
    known = {name: found[name] for name in InferenceConfig.__struct_fields__ if name in found}
    try:
        return msgspec.convert(known, InferenceConfig)
    except msgspec.ValidationError:
        return InferenceConfig()


def recorded_person(recording: Recording) -> PersonConfig:
    """Whose rest the recorded rows are compared with already; what is named is the tag of the predictions."""
    return PersonConfig(name=tag_of(recording.about.model) if recording.about is not None else "")


def recorded_engine(recording: Recording) -> str:
    """The engine that made the recorded predictions; "auto" if that is not clear."""
    if recording.about is None:
        return "auto"
    names = {part.rpartition("-")[0] for part in recording.about.model.partition("/")[2].split("+")}
    return names.pop() if len(names) == 1 else "auto"


def check_features(recording: Recording, weights: Checkpoint) -> None:
    """Refuse a model that was trained on other features than the recorded ones: its numbers would be wrong.

    Raises:
        CheckpointError: which features do not fit.
    """
    for spec in weights.specs:
        for entry in recording.entries({channels.FEATURES + spec.name}):
            record, _ = entry.features()
            if (record.extractor, record.dim) != (spec.extractor, spec.dim):
                raise CheckpointError(
                    f"{recording.path} holds {spec.name} features of {record.extractor}, {weights.id} was trained on "
                    f"{spec.extractor}; name weights that fit with --checkpoint"
                )
            break
