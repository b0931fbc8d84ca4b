"""From corpora to a set of weights: text encoder, face encoder, extraction, speech, fusion, calibration.

Each stage writes a file. It is skipped if that file exists for the same settings and data, and resumes after an
interruption.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import filelock
import msgspec
import torch

from mien.assets import asset_path
from mien.errors import ConfigError, DataError
from mien.files import make_folder, sha256_of, write_file
from mien.models.architecture import ModelConfig
from mien.models.data.corpora import Corpus, corpus_digest, read_corpus
from mien.models.data.dataset_files import is_dataset
from mien.models.data.datasets import Dataset
from mien.models.data.mmsa import is_pickle
from mien.models.training.device import device_name, training_device
from mien.models.training.loop import Progress, part
from mien.models.weights import FACE, FUSION, TEXT, weight_set
from mien.stream.offline.extractors import live_specs
from mien.stream.offline.faces import labelled_faces
from mien.stream.offline.labelled import read_labelled
from mien.stream.offline.plan import STAGES, TrainPlan, output_folder
from mien.stream.offline.pool import worker_pool

if TYPE_CHECKING:
    from mien.models.cmmsf import CMMSF
    from mien.models.training.face import Faces
    from mien.models.training.leave_out import LeaveOut

log = logging.getLogger(__name__)

Stage: TypeAlias = Callable[[TrainPlan, Progress | None], Any]

OUTSIDE = "speech-outside.json"  # factor on each modality's temperature outside the training corpora
FEWEST_CORPORA = 3  # of emotional speech, for a temperature from held-out corpora


class _Result:
    """The file that a stage writes, with a note in the working directory of what it was made from.

    Args:
        made_from: settings and data, in JSON's types.
    """

    def __init__(self, path: Path, plan: TrainPlan, stage: str, made_from: Any) -> None:
        self.path, self._note = path, Path(plan.work) / f"{stage}.json"
        self.key = hashlib.sha256(msgspec.json.encode(made_from)).hexdigest()

    def _content(self) -> str:
        return f"{self.key} {sha256_of(self.path)}"

    @property
    def is_current(self) -> bool:
        """Whether the file exists, unchanged, made from the same settings and data."""
        return self._note.is_file() and self.path.is_file() and self._note.read_text() == self._content()

    def note(self) -> None:
        write_file(self._note, self._content())


def train_text_stage(plan: TrainPlan, progress: Progress | None) -> Any:
    """Adapters of the text encoder; returns the metrics of each epoch."""
    from mien.models.training.text import TextTraining, train_text

    corpora = [c for c in _corpora(plan) if any(item.text for item in c.items) and c.path.suffix.lower() == ".csv"]
    if not corpora:
        return None
    try:
        options = msgspec.convert(plan.text, TextTraining)
    except msgspec.ValidationError as error:
        raise ConfigError(f"table `text`: {error}") from error
    settings = [asdict(options), msgspec.to_builtins(_model(plan, "text"))]
    result = _Result(output_folder(plan) / TEXT, plan, "text", [_contents(corpora), settings])
    if result.is_current:
        return None
    base = asset_path("minilm-l6-v2", plan.assets)
    history = train_text(corpora, base, result.path, Path(plan.work) / "text", options, model=plan.fusion.model,
                         device=training_device(plan.device), report=progress)  # fmt: skip
    result.note()
    return history


def train_face_stage(plan: TrainPlan, progress: Progress | None) -> Any:
    """The face encoder; returns its metrics."""
    from mien.engines.face import CROP_VERSION
    from mien.models.face import FaceConfig
    from mien.models.training.face import train_face

    corpora = [c for c in _corpora(plan) if c.images is not None]
    if not corpora:
        return None
    settings = [msgspec.to_builtins(plan.face), CROP_VERSION, plan.fusion.seed]
    result = _Result(output_folder(plan) / FACE, plan, "face", [_contents(corpora), settings])
    if result.is_current:
        return None
    task = asset_path("face-landmarker", plan.assets)

    def cut(split: str, pool: Executor) -> Faces:
        return labelled_faces(corpora, split, task, pool, part(progress, f"crops of faces, {split}"))

    with worker_pool(plan.jobs or None) as pool:
        train, valid = cut("train", pool), cut("valid", pool)
    device = training_device(plan.device)
    metrics = train_face(
        train, valid, result.path, seed=plan.fusion.seed, config=FaceConfig(crop=CROP_VERSION), training=plan.face,
        work=Path(plan.work) / "face" / result.key[:16], device=device, report=progress,
        notes={"device": device_name(device)},
    )  # fmt: skip
    result.note()
    return metrics


def extract_stage(plan: TrainPlan, progress: Progress | None) -> Any:
    """Rows of all items; returns their number."""
    dataset = training_data(plan, progress)
    return {"items": len(dataset.samples), "skipped": len(dataset.skipped)}


def train_speech_stage(plan: TrainPlan, progress: Progress | None) -> Any:
    """The voice encoder; returns UAR and accuracy on each corpus."""
    from mien.models.training.speech import measure_audio, pretrain_audio
    from mien.models.weights.tensors import write_tensors

    dataset = training_data(plan, progress)
    spoken = [s for s in dataset.samples if "audio" in s.tracks and s.emotion is not None]
    if not any(s.labels.split == "train" for s in spoken):
        return None
    audio, model = Dataset({"audio": dataset.specs["audio"]}, spoken), _model(plan, "audio")
    settings = [msgspec.to_builtins(plan.speech), msgspec.to_builtins(model)]
    made_from = [audio.digest(), settings]
    result = _Result(Path(plan.work) / "speech.safetensors", plan, "speech", made_from)
    if result.is_current:
        return None
    device = training_device(plan.device)
    network = pretrain_audio(audio, plan.speech, model, device=device, report=part(progress, "speech"))
    write_tensors(result.path, network.state_dict())
    write_file(Path(plan.work) / OUTSIDE, msgspec.json.encode(_outside(audio, network, plan, model, progress)))
    result.note()
    measures = measure_audio(network, [s for s in audio.split("valid") if not s.labels.copy])
    return {corpus: {"uar": m.uar, "accuracy": m.accuracy} for corpus, m in measures.items()}


def train_fusion_stage(plan: TrainPlan, progress: Progress | None) -> Any:
    """CM-MSF, calibrated; returns the checkpoint and its validation losses."""
    from safetensors.torch import load_file

    from mien.models.checkpoint import save_checkpoint
    from mien.models.training.calibration import calibrate
    from mien.models.training.fusion import train_fusion
    from mien.models.training.text import READER

    dataset, work = training_data(plan, progress), Path(plan.work)
    paths = {"text": work / "text" / READER, "audio": work / "speech.safetensors"}
    readers = {name: load_file(path) for name, path in paths.items() if name in dataset.specs and path.is_file()}
    trained = train_fusion(
        dataset, plan.fusion, readers=readers, state=work / "fusion.state", log_dir=work / "tensorboard",
        device=training_device(plan.device), report=part(progress, "fusion"),
    )  # fmt: skip
    outside = work / OUTSIDE
    known = msgspec.json.decode(outside.read_bytes(), type=dict[str, float]) if outside.is_file() else {}
    calibrate(trained.averaged, dataset, plan.fusion, known)
    corpora = sorted({s.labels.corpus for s in dataset.samples})
    assert trained.best is not None, "the last step is validated"
    figures = {"step": trained.best.step, "loss": trained.best.loss, **trained.best.figures}
    saved = save_checkpoint(output_folder(plan) / FUSION, trained.averaged, figures=figures,
                            training={"seed": plan.fusion.seed, "corpora": corpora})  # fmt: skip
    _copy_encoders(plan, dataset)
    return {"checkpoint": str(saved.path), "id": saved.id, "temperature": saved.header.temperature, **figures}


_STAGE: dict[str, Stage] = {
    "text": train_text_stage, "face": train_face_stage, "extract": extract_stage, "speech": train_speech_stage,
    "fusion": train_fusion_stage,
}  # fmt: skip


def train(plan: TrainPlan, progress: Progress | None = None) -> dict[str, Any]:
    """Run the stages of a plan.

    Returns:
        Metrics of each stage on its validation split.

    Raises:
        DataError, AssetError, ConfigError: something is missing or wrong, or another run uses the working directory.
    """
    unknown = sorted(set(plan.stages) - set(STAGES))
    if unknown:
        raise ConfigError(f"unknown stage {unknown[0]}; known: {', '.join(STAGES)}")
    training_device(plan.device)
    if not plan.data:
        raise DataError("nothing to train on; name corpora or datasets with --data")
    for folder in (Path(plan.work), output_folder(plan)):
        make_folder(folder, error=ConfigError)
    figures: dict[str, Any] = {}
    threads = torch.get_num_threads()
    try:
        with filelock.FileLock(Path(plan.work) / ".lock", timeout=0):
            for stage in STAGES:
                if stage in plan.stages:
                    log.info("stage %s", stage)
                    torch.set_num_threads(threads)  # a stage may set its own
                    figures[stage] = _STAGE[stage](plan, progress)
    except filelock.Timeout as error:
        raise ConfigError(f"another `mien train` runs in {plan.work}; wait for it, or choose another --work") from error
    return figures


def leave_out(plan: TrainPlan, corpora: Sequence[str], progress: Progress | None = None) -> str:
    """Evaluate the voice encoder on held-out corpora. Writes no weights.

    Args:
        corpora: names; "all" means every one that has several emotions.

    Returns:
        A Markdown table.

    Raises:
        DataError: a corpus is missing, or there are too few.
    """
    dataset = training_data(plan, progress)
    if "audio" not in dataset.specs:
        raise DataError("the data has no speech, which --leave-out needs")
    return _left_out(dataset, [] if "all" in corpora else corpora, plan, _model(plan, "audio"), progress).table()


def _left_out(
    dataset: Dataset, corpora: Sequence[str], plan: TrainPlan, model: ModelConfig, progress: Progress | None
) -> LeaveOut:
    from mien.models.training.leave_out import leave_out

    return leave_out(dataset, corpora, plan.speech, model, device=training_device(plan.device),
                     report=part(progress, "leaving out"))  # fmt: skip


def _outside(
    audio: Dataset, network: CMMSF, plan: TrainPlan, model: ModelConfig, progress: Progress | None
) -> dict[str, float]:
    """Factor by which a voice's temperature outside all corpora exceeds that on validation splits, for `calibrate`.

    Empty if there are too few corpora to tell.
    """
    valid = [s for s in audio.split("valid") if not s.labels.copy]
    several: dict[str, set[int | None]] = {}
    for sample in audio.samples:
        several.setdefault(sample.labels.corpus, set()).add(sample.emotion)
    if not valid or sum(len(emotions) > 1 for emotions in several.values()) < FEWEST_CORPORA:
        return {}
    return {"audio": _left_out(audio, (), plan, model, progress).hotter_than(network, valid)}


def _corpora(plan: TrainPlan) -> list[Corpus]:
    """The sources that are corpora, not datasets or pickles."""
    paths = [Path(source) for source in plan.data]
    return [read_corpus(path) for path in paths if not is_dataset(path) and not is_pickle(path)]


def _contents(corpora: Sequence[Corpus]) -> list[list[Any]]:
    return [[c.name, len(c.items), corpus_digest(c)] for c in corpora]


def _model(plan: TrainPlan, name: str) -> ModelConfig:
    """The model with only the encoder that a stage trains, so that other encoders' sizes do not restart the stage."""
    encoders = plan.fusion.model.encoders
    return msgspec.structs.replace(plan.fusion.model, encoders={n: e for n, e in encoders.items() if n == name})


def training_data(plan: TrainPlan, progress: Progress | None = None) -> Dataset:
    """All items of a plan's data, extracted or read again."""
    return read_labelled(
        [Path(source) for source in plan.data], plan.extract, allow_pickle=plan.allow_pickle,
        assets=plan.assets, weights=weight_set(output_folder(plan)), cache=Path(plan.work) / "datasets", jobs=plan.jobs,
        progress=part(progress, "extract"),
    )  # fmt: skip


def _copy_encoders(plan: TrainPlan, dataset: Dataset) -> None:
    """Copy the shipped encoders that made the rows next to the fusion: other versions of mien may ship others."""
    folder = output_folder(plan)
    used = weight_set(folder)
    for name, path in (("text", used.text), ("vision", used.face)):
        made_here = dataset.specs.get(name) == live_specs([name], used)[name]
        if made_here and path.parent != folder and path.is_file():
            write_file(folder / path.name, path.read_bytes())
