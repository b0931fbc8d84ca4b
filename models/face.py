"""The face encoder: a small residual CNN from an aligned grey crop to an embedding and seven emotions.

The embedding is part of the vision row; the logits are for training.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mien.errors import CheckpointError
from mien.messages import EMOTIONS
from mien.models.weights.tensors import read_tensors, write_tensors

_METADATA = "mien-face"


class FaceConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sizes of a `FaceCNN`.

    Attributes:
        channels: of the stages at 24 x 24, 12 x 12, 6 x 6. blocks: residual blocks of each.
        embedding: columns of the vision row.
        dropout: of pooled features, in training.
        crop: version of the crop that the weights were trained on.
    """

    channels: tuple[int, ...] = (32, 64, 128)
    blocks: tuple[int, ...] = (1, 1, 2)
    embedding: int = 64
    dropout: float = 0.2
    emotions: tuple[str, ...] = EMOTIONS
    crop: str = ""


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions around a shortcut. Starts as the identity, which allows a high learning rate."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(x + self.norm2(self.conv2(y)))


class FaceCNN(nn.Module):
    """About 0.8 million parameters and 2 x 48 million multiplications a face with the default sizes."""

    def __init__(self, config: FaceConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or FaceConfig()
        width, layers = 1, list[nn.Module]()
        for channels, blocks in zip(config.channels, config.blocks, strict=True):
            # A larger first kernel: convolutions at 48 x 48 cost more than all at 6 x 6, and see little.
            layers.append(_halve(width, channels, kernel=5 if width == 1 else 3))
            layers.extend(ResidualBlock(channels) for _ in range(blocks))
            width = channels
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(config.dropout)
        # The norm spreads the embedding over tanh's range.
        self.embed = nn.Sequential(
            nn.Linear(width, config.embedding, bias=False), nn.BatchNorm1d(config.embedding), nn.Tanh()
        )
        self.classify = nn.Linear(config.embedding, len(config.emotions))
        # Predicts a corpus's own label, from before the votes; not used live.
        self.classify_own = nn.Linear(config.embedding, len(config.emotions))

    def forward(self, crop: Tensor) -> tuple[Tensor, Tensor]:
        """Crops to embeddings and logits.

        Args:
            crop: (B, 1, 48, 48) float32 grey, 0 ... 255. Brightness and contrast are normalised here, so that a dark
                room does not pass for an expression.

        Returns:
            embedding (B, 64) in -1 ... 1, and logits (B, 7) in the order of EMOTIONS.
        """
        # Averaging with the mirror image is worth a point of accuracy, and makes mirrored cameras irrelevant.
        if self.training:
            embedding = self._embed(crop)
        else:
            face, mirrored = self._embed(torch.cat([crop, crop.flip(3)])).chunk(2)
            embedding = (face + mirrored) / 2
        return embedding, self.classify(embedding)

    def _embed(self, crop: Tensor) -> Tensor:
        centred = crop - crop.mean(dim=(2, 3), keepdim=True)
        # A floor of one grey level of contrast, or the noise of a flat picture would be amplified.
        contrast = (centred.square().mean(dim=(2, 3), keepdim=True) + 1.0).sqrt()
        pooled = self.features(centred / contrast).mean(dim=(2, 3))
        embedding: Tensor = self.embed(self.dropout(pooled))
        return embedding


def _halve(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """A convolution that halves the side."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride=2, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def save_face(model: FaceCNN, path: Path, notes: dict[str, str] | None = None) -> None:
    """Write the weights in half precision, with config and `notes` as metadata; deterministic."""
    tensors = {
        name: value.half() if value.is_floating_point() else value
        for name, value in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    # A single entry: safetensors writes several in varying order.
    metadata = msgspec.json.encode({"config": model.config, "notes": notes or {}}, order="sorted").decode()
    write_tensors(path, tensors, {_METADATA: metadata})


def load_face(path: Path) -> FaceCNN:
    """The face encoder of a weights file, in float32 and evaluation mode.

    Raises:
        CheckpointError: no such file, no face weights, or weights that do not fit their config.
    """
    tensors, metadata = read_tensors(path, "face weights", CheckpointError)
    if _METADATA not in metadata:
        raise CheckpointError(f"{path} holds no face weights")
    try:
        config = msgspec.convert(msgspec.json.decode(metadata[_METADATA])["config"], FaceConfig)
    except (msgspec.DecodeError, LookupError, TypeError) as error:
        raise CheckpointError(f"{path} carries no config that this version of mien can read: {error}") from error
    if config.emotions != EMOTIONS:
        raise CheckpointError(f"{path} was trained for other emotions: {', '.join(config.emotions)}")
    if "classify.weight" in tensors and "classify_own.weight" not in tensors:
        # Older weights have only the head for the corpus's own labels.
        tensors |= {f"classify_own.{part}": tensors[f"classify.{part}"] for part in ("weight", "bias")}
    model = FaceCNN(config)
    try:
        missing, unexpected = model.load_state_dict(
            {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()},
            strict=False,
        )
    except RuntimeError as error:
        raise CheckpointError(f"{path}: weights do not fit their config: {error}") from error
    wrong = [name for name in missing if not name.endswith("num_batches_tracked")] + list(unexpected)
    if wrong:
        raise CheckpointError(f"{path}: weights do not fit their config: {', '.join(wrong)}")
    return model.eval()
