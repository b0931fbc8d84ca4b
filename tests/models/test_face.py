from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import mien.models
from mien.emotions import EMOTIONS
from mien.errors import CheckpointError, DataError
from mien.models.face import FaceCNN, FaceConfig, load_face, save_face
from mien.models.face_training import FaceTraining, augment, evaluate_face, train_face

SMALL = FaceConfig(channels=(8, 8, 8), blocks=(0, 1, 0), embedding=8, dropout=0.1, crop="test")
WEIGHTS = Path(mien.models.__file__).parent / "weights" / "face.safetensors"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small pictures gain nothing from more, and one seed gives the same bits only with as many."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def bars(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures with a bright bar, lying (class 0) or standing (class 1), on noise."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, count)
    images = random.integers(0, 120, (count, 48, 48), np.uint8)
    for image, label in zip(images, labels, strict=True):
        at = random.integers(12, 32)
        (image if label == 0 else image.T)[at : at + 6] += 100
    return images, labels.astype(np.int64)


def test_the_network_is_small_and_its_embedding_bounded() -> None:
    model = FaceCNN().eval()
    assert sum(parameter.numel() for parameter in model.parameters()) <= 1_500_000
    embedding, logits = model(torch.rand(3, 1, 48, 48) * 255)
    assert embedding.shape == (3, 64)
    assert logits.shape == (3, len(EMOTIONS))
    assert embedding.abs().max() <= 1


def test_brightness_and_contrast_are_no_expression() -> None:
    model = FaceCNN().eval()
    crop = torch.rand(1, 1, 48, 48) * 100 + 80
    darker = (crop - 80) * 0.6 + 20
    with torch.inference_mode():
        assert torch.allclose(model(crop)[0], model(darker)[0], atol=5e-3)


def test_a_mirrored_face_is_the_same_face() -> None:
    model = FaceCNN().eval()
    crop = torch.rand(2, 1, 48, 48) * 255
    with torch.inference_mode():
        for one, mirrored in zip(model(crop), model(crop.flip(3)), strict=True):
            assert torch.allclose(one, mirrored, atol=1e-6)


def test_a_flat_picture_gives_finite_numbers() -> None:
    with torch.inference_mode():
        embedding, logits = FaceCNN().eval()(torch.zeros(1, 1, 48, 48))
    assert torch.isfinite(embedding).all()
    assert torch.isfinite(logits).all()


def test_weights_come_back_as_they_were_saved_and_the_bytes_are_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = FaceCNN(SMALL).eval()
    save_face(model, tmp_path / "one.safetensors", {"seed": "0"})
    save_face(model, tmp_path / "two.safetensors", {"seed": "0"})
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    loaded = load_face(tmp_path / "one.safetensors")
    assert loaded.config == SMALL
    assert not loaded.training
    crops = torch.rand(2, 1, 48, 48) * 255
    with torch.inference_mode():
        for ours, theirs in zip(model(crops), loaded(crops), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-2)


def test_weights_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    path = tmp_path / "face.safetensors"
    with pytest.raises(CheckpointError, match=r"face\.safetensors"):
        load_face(path)
    path.write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=r"face\.safetensors"):
        load_face(path)
    save_file({"x": torch.zeros(1)}, path, metadata={"other": "{}"})
    with pytest.raises(CheckpointError, match="no face weights"):
        load_face(path)
    save_file({"x": torch.zeros(1)}, path, metadata={"mien-face": '{"config":{}}'})
    with pytest.raises(CheckpointError, match="do not fit"):
        load_face(path)
    save_file({"x": torch.zeros(1)}, path, metadata={"mien-face": '{"config":{"emotions":["calm"]}}'})
    with pytest.raises(CheckpointError, match="other emotions: calm"):
        load_face(path)


def test_augmentation_is_drawn_from_its_generator_and_keeps_the_picture_recognisable() -> None:
    crops = torch.from_numpy(bars(16, 0)[0])[:, None].float()
    first = augment(crops, torch.Generator().manual_seed(1))
    assert torch.equal(first, augment(crops, torch.Generator().manual_seed(1)))
    assert not torch.equal(first, augment(crops, torch.Generator().manual_seed(2)))
    assert first.shape == crops.shape
    assert torch.isfinite(first).all()
    # A bar is bright on dark, wherever it went: that is left in nearly all of them.
    spread = first.amax(dim=(1, 2, 3)) - first.mean(dim=(1, 2, 3))
    assert (spread > 40).float().mean() > 0.8


def test_training_learns_and_one_seed_gives_one_file(tmp_path: Path) -> None:
    images, labels = bars(256, 0)
    held_out = bars(64, 1)
    training = FaceTraining(batch=32, bf16=False)

    def train(name: str, seed: int) -> float:
        path = tmp_path / name
        metrics = train_face(images, labels, *held_out, path, seed=seed, epochs=3, config=SMALL, training=training)
        assert metrics == evaluate_face(load_face(path), *held_out)
        return metrics.accuracy

    assert train("one", 1) > 0.9
    train("again", 1)
    train("other", 2)
    one = (tmp_path / "one").read_bytes()
    assert one == (tmp_path / "again").read_bytes()
    assert one != (tmp_path / "other").read_bytes()


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    images, labels = bars(96, 0)
    held_out = bars(64, 1)
    training = FaceTraining(batch=32, bf16=False)

    class StopError(Exception):
        pass

    def stop(epoch: int, *_: object) -> None:
        if epoch == 2:
            raise StopError

    def train(name: str, state: Path | None, report: object = None) -> None:
        train_face(
            images, labels, *held_out, tmp_path / name, seed=1, epochs=4, config=SMALL, training=training,
            state=state, report=report,  # type: ignore[arg-type]
        )  # fmt: skip

    train("whole", None)
    state = tmp_path / "state"
    with pytest.raises(StopError):
        train("parts", state, stop)
    assert state.exists()
    with pytest.raises(DataError, match="other settings"):
        train_face(images, labels, *held_out, tmp_path / "x", seed=2, epochs=4, config=SMALL, state=state)
    train("parts", state)
    assert not state.exists()
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "parts").read_bytes()


def test_arrays_that_do_not_belong_together_are_refused() -> None:
    images, labels = bars(4, 0)
    model = FaceCNN(SMALL)
    for wrong_images, wrong_labels in (
        (images[:3], labels),
        (images[:, :40], labels),
        (images.astype(np.float32), labels),
        (images, labels + 6),
        (images[:0], labels[:0]),
    ):
        with pytest.raises(DataError):
            evaluate_face(model, wrong_images, wrong_labels)


def test_the_shipped_weights_are_small_and_whole() -> None:
    assert WEIGHTS.stat().st_size < 3_500_000
    model = load_face(WEIGHTS)
    assert model.config.crop
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
