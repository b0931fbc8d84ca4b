"""Checkpoints: half-precision safetensors that carry their own configuration.

The metadata of the file holds one JSON text: the model's configuration, the extractors of its training rows, the order
of its labels and its measured figures. Reading it needs no torch; only `Checkpoint.network()` does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from mien.errors import CheckpointError
from mien.files import write_file
from mien.messages import EMOTIONS, Float32, ModalitySpec
from mien.models.architecture import ModelConfig
from mien.models.weights import AGAIN, weight_set

if TYPE_CHECKING:
    from mien.models.cmmsf import CMMSF

KIND = "mien-cmmsf"
FORMAT = 1
_METADATA_KEY = "mien"
_RETIRED = ("centre", "tilt", "bands", "planes", "hidden")  # encoder fields in older headers, ignored


class CheckpointHeader(msgspec.Struct, frozen=True):
    """The metadata of a checkpoint.

    Attributes:
        kind, format: of the file; others are rejected.
        specs: the modalities in the order of the model's inputs and shares, with the extractors of their rows.
        labels: order of the emotion outputs.
        temperature: of each modality and of several together, see `mien.models.cmmsf.Fusion`.
        figures: measured on validation parts, for display.
        training: seed, corpora and versions, for display.
    """

    kind: str
    format: int
    config: ModelConfig
    specs: tuple[ModalitySpec, ...]
    labels: tuple[str, ...] = EMOTIONS
    temperature: tuple[float, ...] = ()
    figures: dict[str, Any] = {}
    training: dict[str, Any] = {}


class Checkpoint:
    """A checkpoint file, its header read and checked.

    Attributes:
        path: the file. header: see `CheckpointHeader`. digest: first 16 hex digits of the file's SHA-256.
        id: short name for predictions, for instance "cmmsf-1a2b3c4d".
        config: sizes and switches of the model. specs: the modalities, in the order of its inputs and shares.
    """

    def __init__(self, path: Path, header: CheckpointHeader, digest: str) -> None:
        self.path, self.header, self.digest, self.id = path, header, digest, f"cmmsf-{digest[:8]}"
        self.config, self.specs = header.config, header.specs

    def normalisation(self, name: str) -> tuple[Float32, Float32]:
        """Mean and standard deviation (D,) of a modality's rows in the training set.

        Raises:
            CheckpointError: the checkpoint has no such modality.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="np") as tensors:
                mean, std = (tensors.get_tensor(f"encoders.{name}.{what}") for what in ("mean", "std"))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.path} has no statistics of modality {name}: {error}") from error
        return mean, std

    def network(self) -> CMMSF:
        """The model with its weights, float32, in evaluation mode.

        Raises:
            CheckpointError: the weights do not fit the configuration.
        """
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from mien.models.cmmsf import CMMSF

        network = CMMSF(self.specs, self.config)
        try:
            state = {
                name: tensor.float() if tensor.is_floating_point() else tensor
                for name, tensor in load_file(self.path).items()
            }
            kept = state.get("fusion.temperature")
            if kept is not None and len(kept) == len(self.specs) + 2:
                # Older checkpoints lack the temperature of disagreement: 1 has no effect.
                state["fusion.temperature"] = torch.cat([kept, torch.ones(1)])
            network.load_state_dict(state)
        except (SafetensorError, RuntimeError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(f"{self.path} has weights that do not fit its configuration: {reason}") from error
        if not all(bool(torch.isfinite(tensor).all()) for tensor in state.values()):
            raise CheckpointError(f"{self.path} holds numbers that are not finite; train it again")
        return network.eval()


def load_checkpoint(path: Path | str = "") -> Checkpoint:
    """Read the header of a checkpoint, as `weight_set` finds it: a file, a folder, or, if empty, the shipped one.

    Raises:
        CheckpointError: the file is missing, damaged, or not a CM-MSF checkpoint that this version can read.
    """
    path = weight_set(path).fusion
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"no checkpoint at {path}; `mien train` makes one") from error
    except OSError as error:
        raise CheckpointError(f"cannot read checkpoint {path}: {error.strerror}; {AGAIN}") from error
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as tensors:
            metadata = tensors.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file: {error}; {AGAIN}") from error
    if _METADATA_KEY not in metadata:
        raise CheckpointError(f"{path} is not a mien checkpoint: its metadata has no `{_METADATA_KEY}`")
    return Checkpoint(path, _parse(path, metadata[_METADATA_KEY]), hashlib.sha256(content).hexdigest()[:16])


def _parse(path: Path, text: str) -> CheckpointHeader:
    try:
        marks = json.loads(text)
        if marks.get("kind") != KIND:
            raise CheckpointError(f"{path} holds `{marks.get('kind')}`, not a CM-MSF model (`{KIND}`)")
        if marks.get("format") != FORMAT:
            raise CheckpointError(
                f"{path} has format {marks.get('format')}, and this mien reads format {FORMAT}; install the mien "
                "that made it, or train again"
            )
        for encoder in marks.get("config", {}).get("encoders", {}).values():
            retired = [name for name in _RETIRED if encoder.pop(name, None)]
            if retired:
                raise CheckpointError(f"{path} has an encoder with `{retired[0]}`, which mien dropped; train again")
        header = msgspec.convert(marks, CheckpointHeader)
    except (json.JSONDecodeError, AttributeError, msgspec.DecodeError, msgspec.ValidationError) as error:
        raise CheckpointError(f"{path} has metadata that cannot be read: {error}") from error
    if header.labels != EMOTIONS:
        raise CheckpointError(f"{path} was trained for emotions {', '.join(header.labels)}; this mien has others")
    return header


def save_checkpoint(
    path: Path,
    network: CMMSF,
    *,
    figures: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Write a model as a checkpoint, atomically: a reader sees the old file or the new one.

    Weights are stored in half precision; normalisation statistics keep float32, whose range they need.

    Raises:
        CheckpointError: a weight is not finite in half precision.
        OSError: the file cannot be written.
    """
    import torch
    from safetensors.torch import save

    state = {}
    for name, tensor in network.state_dict().items():
        wide = name.endswith((".mean", ".std", ".running_mean", ".running_var", "temperature"))
        kept = tensor.detach().to("cpu")
        state[name] = (kept if wide or not kept.is_floating_point() else kept.half()).contiguous()
        if not bool(torch.isfinite(state[name]).all()):
            raise CheckpointError(f"weight {name} is not finite in half precision; nothing was written to {path}")
    header = CheckpointHeader(
        kind=KIND,
        format=FORMAT,
        config=network.config,
        specs=network.specs,
        temperature=tuple(network.fusion.temperature.tolist()),
        figures=dict(figures or {}),
        training=dict(training or {}),
    )
    # Decode and encode again, so that a rate of 10 and one of 10.0 give the same file.
    header = msgspec.json.decode(msgspec.json.encode(header), type=CheckpointHeader)
    content = save(state, {_METADATA_KEY: msgspec.json.encode(header, order="sorted").decode()})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, content)
    return load_checkpoint(path)


def check_extractors(checkpoint: Checkpoint, specs: Iterable[ModalitySpec]) -> None:
    """Reject rows that the checkpoint was not trained on.

    Args:
        specs: of the rows to predict on; modalities of the checkpoint may be missing.

    Raises:
        CheckpointError: the checkpoint lacks a modality, or was trained on another extractor's rows.
    """
    trained = {spec.name: spec for spec in checkpoint.specs}
    for spec in specs:
        if spec.name not in trained:
            known = ", ".join(trained)
            raise CheckpointError(f"{checkpoint.path} was not trained on modality {spec.name} (it knows {known})")
        expected = trained[spec.name]
        for what in ("extractor", "dim", "rate_hz", "steps", "snapshot"):
            if getattr(spec, what) != getattr(expected, what):
                raise CheckpointError(
                    f"{checkpoint.path} was trained on {spec.name} rows with {what} {getattr(expected, what)!r}, but "
                    f"these have {getattr(spec, what)!r}; pass the whole folder of `mien train`, which holds its own "
                    "encoders, use weights for that extractor, or train again"
                )
