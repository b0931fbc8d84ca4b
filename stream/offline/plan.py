"""The plan of `mien train`: data, folders, and settings of all stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from mien.config import AssetsConfig, read_toml
from mien.errors import ConfigError
from mien.models.architecture import Natural
from mien.models.training.face import FaceTraining
from mien.models.training.fusion_settings import FusionTraining
from mien.models.training.speech import SpeechTraining
from mien.models.weights import SHIPPED_FOLDER
from mien.stream.offline.items import ExtractOptions

STAGES = ("text", "face", "extract", "speech", "fusion")


class TrainPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `mien train` does; see `configs/train.toml` for an example.

    Attributes:
        data: corpora, datasets from `mien extract`, or MMSA pickles.
        work: working directory; an interrupted run resumes from it.
        out: folder of the weights, a set as described in `mien.models.weights`; empty means `weights` in `work`.
        replace_shipped: write to the installation instead, replacing the shipped weights.
        device: "auto" (an NVIDIA GPU if there is one), "cpu" or "cuda".
        stages: of STAGES, run in that order.
        text: fields of `mien.models.training.text.TextTraining`.
    """

    data: tuple[str, ...] = ()
    work: str = "runs/train"
    out: str = ""
    replace_shipped: bool = False
    device: str = "auto"
    stages: tuple[str, ...] = STAGES
    allow_pickle: bool = False
    jobs: Natural = 0
    text: dict[str, Any] = msgspec.field(default_factory=dict)
    face: FaceTraining = FaceTraining()
    extract: ExtractOptions = ExtractOptions(splits=("train", "valid"), audio_copies=12, partial_texts=0.3)
    speech: SpeechTraining = SpeechTraining()
    fusion: FusionTraining = FusionTraining()
    assets: AssetsConfig = AssetsConfig()


def load_plan(path: Path | None) -> TrainPlan:
    """Read a TOML file, or use the defaults.

    Raises:
        ConfigError: the file cannot be read, a key does not exist, or a value has the wrong type.
    """
    return TrainPlan() if path is None else read_toml(path, TrainPlan)


def output_folder(plan: TrainPlan) -> Path:
    """The folder for a plan's weights.

    Raises:
        ConfigError: it holds the shipped weights, and `replace_shipped` is not set.
    """
    if plan.replace_shipped:
        if plan.out:
            raise ConfigError("either a folder for the weights (`out`) or `replace_shipped`, not both")
        return SHIPPED_FOLDER
    folder = Path(plan.out).expanduser() if plan.out else Path(plan.work) / "weights"
    if folder.resolve() == SHIPPED_FOLDER.resolve():
        raise ConfigError(f"{folder} holds the weights that came with mien; --replace-shipped writes over them")
    return folder
