"""From corpora to a set of weights: text encoder, face encoder, extraction, speech, fusion, calibration.

Each stage writes a file, is skipped when that file is there and belongs to the same settings and data, and goes on
where it was stopped. A stage that changes an extractor runs in a process of its own: whoever reads rows next then sees
the new extractor's name.
"""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import multiprocessing.queues
import os
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from mien.assets import asset_path
from mien.config import AssetsConfig, explain
from mien.errors import ConfigError, DataError
from mien.files import write_file
from mien.models.architecture import EncoderConfig, ModelConfig
from mien.models.data.corpora import Corpus, content_digest, read_corpus
from mien.models.data.datasets import Dataset, is_dataset
from mien.models.training.device import device_name, training_device
from mien.models.training.face import FaceTraining
from mien.models.training.fusion import FusionTraining
from mien.models.training.speech import SpeechTraining
from mien.models.weights import FACE, FUSION, SHIPPED_FOLDER, TEXT, weight_set
from mien.stream.offline.extraction import ExtractOptions
from mien.stream.offline.faces import labelled_faces
from mien.stream.offline.helpers import helpers

if TYPE_CHECKING:
    from mien.models.cmmsf import CMMSF

log = logging.getLogger(__name__)

STAGES = ("text", "face", "extract", "speech", "fusion")
OUTSIDE = "speech-outside.json"  # how much surer a modality is inside its corpora than outside
FEWEST_CORPORA = 3  # of emotional speech, for a temperature from those that were left out
Progress = Callable[[str, int, int], None]
Stage: TypeAlias = "Callable[[TrainPlan, Progress | None], Any]"
Reports: TypeAlias = "multiprocessing.queues.Queue[tuple[str, int, int]]"

_reports: Reports  # of a stage in a process of its own, to the process that waits for it


class TrainPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `mien train` does; `configs/train.toml` shows it.

    Attributes:
        data: corpora, datasets of `mien extract`, or MMSA pickles.
        work: folder for everything in between; a stopped run goes on there.
        out: folder of the weights, a set as `mien.models.weights` describes it; empty means `weights` in `work`.
        replace_shipped: write into the installation instead, over the weights that came with mien.
        device: "auto", an NVIDIA GPU where there is one, "cpu" or "cuda".
        stages: of STAGES, in that order whatever is written here.
        text: fields of `mien.models.training.text.TextTraining`.
    """

    data: tuple[str, ...] = ()
    work: str = "runs/train"
    out: str = ""
    replace_shipped: bool = False
    device: str = "auto"
    stages: tuple[str, ...] = STAGES
    allow_pickle: bool = False
    jobs: int = 0
    text: dict[str, Any] = msgspec.field(default_factory=dict)
    face: FaceTraining = FaceTraining()
    extract: ExtractOptions = ExtractOptions(splits=("train", "valid"), audio_copies=12, partial_texts=0.3)
    speech: SpeechTraining = SpeechTraining()
    fusion: FusionTraining = FusionTraining()
    assets: AssetsConfig = AssetsConfig()


def load_plan(path: Path | None) -> TrainPlan:
    """Read a TOML file, or take the defaults.

    Raises:
        ConfigError: the file cannot be read, a key does not exist, or a value has the wrong type.
    """
    if path is None:
        return TrainPlan()
    try:
        return msgspec.convert(msgspec.toml.decode(path.read_bytes()), TrainPlan)
    except OSError as error:
        raise ConfigError(f"cannot read configuration {path}: {error.strerror}") from error
    except msgspec.ValidationError as error:
        raise ConfigError(explain(str(error), TrainPlan, path)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def output_folder(plan: TrainPlan) -> Path:
    """Where a plan's weights go.

    Raises:
        ConfigError: over those that ship, without having said so.
    """
    if plan.replace_shipped:
        if plan.out:
            raise ConfigError("either a folder for the weights (`out`) or `replace_shipped`, not both")
        return SHIPPED_FOLDER
    folder = Path(plan.out).expanduser() if plan.out else Path(plan.work) / "weights"
    if folder.resolve() == SHIPPED_FOLDER.resolve():
        raise ConfigError(f"{folder} holds the weights that came with mien; --replace-shipped writes over them")
    return folder


def train(plan: TrainPlan, progress: Progress | None = None) -> dict[str, Any]:
    """Run the stages of a plan.

    Returns:
        What each stage measured on its validation split.

    Raises:
        DataError, AssetError, ConfigError: what is missing or wrong, and what to do.
    """
    unknown = sorted(set(plan.stages) - set(STAGES))
    if unknown:
        raise ConfigError(f"unknown stage {unknown[0]}; known: {', '.join(STAGES)}")
    training_device(plan.device)
    if not plan.data:
        raise DataError("nothing to train on; name corpora or datasets with --data")
    for folder in (Path(plan.work), output_folder(plan)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot make the folder {folder}: {error.strerror}") from error
        if not os.access(folder, os.W_OK):
            raise ConfigError(f"the folder {folder} is not yours to write to; name another one")
    figures: dict[str, Any] = {}
    for stage in STAGES:
        if stage in plan.stages:
            log.info("stage %s", stage)
            run = _RUN[stage]
            figures[stage] = in_own_process(run, plan, progress) if stage in ("text", "face") else run(plan, progress)
    return figures


def in_own_process(run: Stage, plan: TrainPlan, progress: Progress | None) -> Any:
    """What a stage returns, or the error that it ends with; `progress` is called here."""
    level = logging.getLogger().level
    reports: Reports = multiprocessing.get_context("spawn").Queue()
    ended = threading.Event()

    def pass_on() -> None:
        while True:
            try:
                report = reports.get(timeout=0.2)
            except queue.Empty:
                if ended.is_set():
                    return
                continue
            if progress is not None:
                progress(*report)

    listener = threading.Thread(target=pass_on, name="progress", daemon=True)
    listener.start()
    try:
        with helpers(1, _begin_alone, level, reports) as pool:
            return pool.submit(_run_alone, run, plan).result()
    finally:
        ended.set()
        listener.join(2.0)


def _begin_alone(level: int, reports: Reports) -> None:
    global _reports
    logging.basicConfig(level=level, format="%(asctime)s %(message)s")
    _reports = reports


def _run_alone(run: Stage, plan: TrainPlan) -> Any:
    return run(plan, lambda what, done, total: _reports.put((what, done, total)))


def _corpora(plan: TrainPlan) -> list[Corpus]:
    """The sources that are corpora, and not datasets or pickles."""
    paths = [Path(source) for source in plan.data]
    return [read_corpus(path) for path in paths if not is_dataset(path) and path.suffix not in (".pkl", ".pickle")]


def _train_text(plan: TrainPlan, progress: Progress | None) -> Any:
    from mien.models.training.text import TextTraining, train_text

    corpora = [c for c in _corpora(plan) if any(item.text for item in c.items) and c.path.suffix.lower() == ".csv"]
    if not corpora:
        return None
    try:
        options = msgspec.convert(plan.text, TextTraining)
    except msgspec.ValidationError as error:
        raise ConfigError(f"table `text`: {error}") from error
    weights, note = output_folder(plan) / TEXT, Path(plan.work) / "text.json"
    model = msgspec.structs.replace(plan.fusion.model, encoders=_of(plan.fusion.model, "text"))
    key = _key(corpora, [asdict(options), msgspec.to_builtins(model)])
    if _is_noted(note, key, weights):
        return None
    base = asset_path("minilm-l6-v2", plan.assets)
    history = train_text(corpora, base, weights, Path(plan.work) / "text", options,
                         model=plan.fusion.model, device=training_device(plan.device), report=progress)  # fmt: skip
    _note(note, key, weights)
    return history


def _of(model: ModelConfig, name: str) -> dict[str, EncoderConfig]:
    """The one encoder that a stage trains: another one's sizes are not to make it start again."""
    return {name: model.encoders[name]} if name in model.encoders else {}


def _train_face(plan: TrainPlan, progress: Progress | None) -> Any:
    from mien.models.face import FaceConfig
    from mien.models.training.face import Faces, train_face
    from mien.stream.modalities.face_crop import CROP_VERSION

    corpora = [c for c in _corpora(plan) if c.images is not None]
    if not corpora:
        return None
    weights, note = output_folder(plan) / FACE, Path(plan.work) / "face.json"
    key = _key(corpora, [msgspec.to_builtins(plan.face), CROP_VERSION, plan.fusion.seed])
    if _is_noted(note, key, weights):
        return None
    task = asset_path("face-landmarker", plan.assets)

    def cut(split: str, pool: Executor) -> Faces:
        told = None if progress is None else partial(progress, f"crops of faces, {split}")
        return labelled_faces(corpora, split, task, pool, told)

    with helpers(plan.jobs or None) as pool:
        train, valid = cut("train", pool), cut("valid", pool)
    device = training_device(plan.device)
    metrics = train_face(
        train, valid, weights, seed=plan.fusion.seed, config=FaceConfig(crop=CROP_VERSION), training=plan.face,
        work=Path(plan.work) / "face" / key[:16], device=device, report=progress, notes={"device": device_name(device)},
    )  # fmt: skip
    _note(note, key, weights)
    return asdict(metrics)


def _dataset(plan: TrainPlan, progress: Progress | None) -> Dataset:
    from mien.stream.offline.labelled import read_labelled

    def step(done: int, total: int) -> None:
        if progress is not None:
            progress("extract", done, total)

    return read_labelled(
        [Path(source) for source in plan.data], plan.extract, allow_pickle=plan.allow_pickle,
        weights=weight_set(output_folder(plan)), cache=Path(plan.work) / "datasets", jobs=plan.jobs, progress=step,
    )  # fmt: skip


def _extract(plan: TrainPlan, progress: Progress | None) -> Any:
    dataset = _dataset(plan, progress)
    return {"items": len(dataset.samples), "skipped": len(dataset.skipped)}


def _train_speech(plan: TrainPlan, progress: Progress | None) -> Any:
    from mien.models.training.speech import pretrain_audio
    from mien.models.weights.tensors import write_tensors

    dataset = _dataset(plan, progress)
    spoken = [s for s in dataset.samples if "audio" in s.tracks and s.emotion is not None and s.labels.damage is None]
    if not any(s.labels.split == "train" for s in spoken):
        return None
    weights, note = Path(plan.work) / "speech.safetensors", Path(plan.work) / "speech.json"
    audio = Dataset({"audio": dataset.specs["audio"]}, spoken)
    model = msgspec.structs.replace(plan.fusion.model, encoders=_of(plan.fusion.model, "audio"))
    key = _samples_key(audio, [msgspec.to_builtins(plan.speech), msgspec.to_builtins(model)])
    if _is_noted(note, key, weights):
        return None

    def step(done: int, total: int) -> None:
        if progress is not None:
            progress("speech", done, total)

    device = training_device(plan.device)
    trained = pretrain_audio(audio, plan.speech, model, device=device, report=step)
    write_tensors(weights, trained.reader)
    write_file(Path(plan.work) / OUTSIDE, msgspec.json.encode(_outside(audio, trained.network, plan, model, progress)))
    _note(note, key, weights)
    return {corpus: {"uar": m.uar, "accuracy": m.accuracy} for corpus, m in trained.measures.items()}


def _outside(
    audio: Dataset, network: CMMSF, plan: TrainPlan, model: ModelConfig, progress: Progress | None
) -> dict[str, float]:
    """How much hotter confidence in a voice must be outside of all corpora than on validation parts."""
    from mien.models.training.leave_out import leave_out as judge

    def step(done: int, total: int) -> None:
        if progress is not None:
            progress("leaving out", done, total)

    valid = [s for s in audio.split("valid") if not s.labels.copy]
    several: dict[str, set[int | None]] = {}
    for sample in audio.samples:
        several.setdefault(sample.labels.corpus, set()).add(sample.emotion)
    if not valid or sum(len(emotions) > 1 for emotions in several.values()) < FEWEST_CORPORA:
        return {}
    left = judge(audio, (), plan.speech, model, device=training_device(plan.device), report=step)
    return {"audio": left.hotter_than(network, valid)}


def leave_out(plan: TrainPlan, corpora: Sequence[str], progress: Progress | None = None) -> str:
    """Judge the encoder of voices on corpora that it was not trained on. Writes no weights.

    Args:
        corpora: names; "all" stands for every one that has several emotions.

    Returns:
        A table in Markdown.

    Raises:
        DataError: a corpus is not there, or too few are.
    """
    from mien.models.training.leave_out import leave_out as judge

    dataset = _dataset(plan, progress)
    if "audio" not in dataset.specs:
        raise DataError("there is no speech among the data, and --leave-out judges voices")

    def step(done: int, total: int) -> None:
        if progress is not None:
            progress("leaving out", done, total)

    chosen = [] if "all" in corpora else corpora
    model = msgspec.structs.replace(plan.fusion.model, encoders=_of(plan.fusion.model, "audio"))
    return judge(dataset, chosen, plan.speech, model, device=training_device(plan.device), report=step).table()


def _train_fusion(plan: TrainPlan, progress: Progress | None) -> Any:
    from safetensors.torch import load_file

    from mien.models.checkpoint import save_checkpoint
    from mien.models.training.calibration import calibrate
    from mien.models.training.fusion import train_fusion
    from mien.models.training.text import READER

    dataset = _dataset(plan, progress)
    made = {"text": Path(plan.work) / "text" / READER, "audio": Path(plan.work) / "speech.safetensors"}
    readers = {name: load_file(path) for name, path in made.items() if name in dataset.specs and path.is_file()}

    def step(done: int, total: int, _: object) -> None:
        if progress is not None:
            progress("fusion", done, total)

    work = Path(plan.work)
    trained = train_fusion(
        dataset, plan.fusion, readers=readers, state=work / "fusion.state", log_dir=work / "tensorboard",
        device=training_device(plan.device), report=step,
    )  # fmt: skip
    outside = work / OUTSIDE
    known = msgspec.json.decode(outside.read_bytes(), type=dict[str, float]) if outside.is_file() else {}
    calibrate(trained.network, dataset, plan.fusion, known)
    path = output_folder(plan) / FUSION
    corpora = sorted({s.labels.corpus for s in dataset.samples})
    figures = {"step": trained.best.step, "loss": trained.best.loss, **trained.best.by_kind}
    saved = save_checkpoint(
        path, trained.network, figures=figures, training={"seed": plan.fusion.seed, "corpora": corpora}
    )
    _complete(plan, dataset)
    return {"checkpoint": str(saved.path), "id": saved.id, "temperature": saved.header.temperature, **figures}


def _complete(plan: TrainPlan, dataset: Dataset) -> None:
    """Copy shipped encoders that made the rows beside the fusion: another mien may ship others."""
    from mien.stream.offline.extraction import live_specs

    folder = output_folder(plan)
    used = weight_set(folder)
    for name, path in (("text", used.text), ("vision", used.face)):
        made_here = dataset.specs.get(name) == live_specs([name], used)[name]
        if made_here and path.parent != folder and path.is_file():
            write_file(folder / path.name, path.read_bytes())


_RUN: dict[str, Stage] = {
    "text": _train_text, "face": _train_face, "extract": _extract, "speech": _train_speech, "fusion": _train_fusion
}  # fmt: skip


def _key(corpora: Sequence[Corpus], settings: Any) -> str:
    """What a stage's result depends on."""
    names = [[c.name, len(c.items), content_digest(c.path)] for c in corpora]
    return hashlib.sha256(msgspec.json.encode([names, settings])).hexdigest()


def _samples_key(dataset: Dataset, settings: Any) -> str:
    return hashlib.sha256(
        msgspec.json.encode([[s.labels.id for s in dataset.samples], dataset.specs, settings])
    ).hexdigest()


def _is_noted(note: Path, key: str, weights: Path) -> bool:
    """Whether a stage is done: noted with this key, and its file still what it wrote."""
    if not (note.is_file() and weights.is_file()):
        return False
    return note.read_text() == f"{key} {hashlib.sha256(weights.read_bytes()).hexdigest()}"


def _note(note: Path, key: str, weights: Path) -> None:
    write_file(note, f"{key} {hashlib.sha256(weights.read_bytes()).hexdigest()}")
