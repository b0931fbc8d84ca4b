from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import mien.models
from mien.errors import CheckpointError, DataError
from mien.messages import EMOTIONS
from mien.models.face import FaceCNN, FaceConfig, load_face, save_face
from mien.models.training import face as face_training
from mien.models.training.face import Faces, FaceTraining, evaluate_face, train_face
from mien.models.training.face_augmentation import DAMAGES, augment

SMALL = FaceConfig(channels=(8, 8, 8), blocks=(0, 1, 0), embedding=8, dropout=0.1, crop="test")
WEIGHTS = Path(mien.models.__file__).parent / "weights" / "face.safetensors"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small pictures gain nothing from more, and one seed gives the same bits only with as many."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


TRAINING = FaceTraining(
    batch=32, epochs=4, teacher_epochs=2, teacher_channels=(12, 12, 12), teacher_blocks=(0, 1, 0), bf16=False
)


def bars(count: int, seed: int) -> Faces:
    """Pictures with a bright bar, lying (class 0) or standing (class 1), on noise. Nine of ten annotators see it, and
    the corpus's own label is wrong for a tenth."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, count)
    images = random.integers(0, 120, (count, 48, 48), np.uint8)
    for image, label in zip(images, labels, strict=True):
        at = random.integers(12, 32)
        (image if label == 0 else image.T)[at : at + 6] += 100
    labels = labels.astype(np.int64)
    shares = np.eye(len(EMOTIONS), dtype=np.float32)[labels] * 0.9
    shares[np.arange(count), 1 - labels] = 0.1
    own = np.where(random.random(count) < 0.1, 1 - labels, labels)
    return Faces(images, shares, labels, own)


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


def test_mirrored_face_gives_the_same_result() -> None:
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


def test_weights_round_trip_byte_equal(tmp_path: Path) -> None:
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
    crops = torch.from_numpy(bars(32, 0).crops)[:, None].float()

    def seen(seed: int, damaged: float) -> tuple[torch.Tensor, torch.Tensor]:
        return augment(crops, torch.Generator().manual_seed(seed), damaged)

    first, severity = seen(1, 0.0)
    assert torch.equal(first, seen(1, 0.0)[0])
    assert not torch.equal(first, seen(2, 0.0)[0])
    assert first.shape == crops.shape
    assert torch.isfinite(first).all()
    assert not severity.any()
    # A bar is bright on dark, wherever it went: that is left in nearly all of them.
    spread = first.amax(dim=(1, 2, 3)) - first.mean(dim=(1, 2, 3))
    assert (spread > 40).float().mean() > 0.8


def test_damage_has_the_requested_rate_and_a_severity() -> None:
    crops = torch.from_numpy(bars(400, 0).crops)[:, None].float()
    seen, severity = augment(crops, torch.Generator().manual_seed(1), 0.5)
    assert torch.isfinite(seen).all()
    assert 0.4 < (severity > 0).float().mean() < 0.6
    assert severity.max() <= 1
    clean, _ = augment(crops, torch.Generator().manual_seed(1), 0.0)

    def detail(x: torch.Tensor) -> torch.Tensor:
        """Contrast of neighbours, which noise and bars have, and blurred, small or dark pictures have not."""
        return (x[..., 1:] - x[..., :-1]).abs().mean(dim=(1, 2, 3))

    assert detail(seen)[severity > 0.5].mean() < 0.8 * detail(clean).mean()
    assert len(DAMAGES) == 6


def test_training_learns_and_one_seed_gives_one_file(tmp_path: Path) -> None:
    faces, held_out = bars(256, 0), bars(64, 1)

    def train(name: str, seed: int) -> float:
        path = tmp_path / name
        metrics = train_face(faces, held_out, path, seed=seed, config=SMALL, training=TRAINING)
        assert repr(metrics) == repr(evaluate_face(load_face(path), held_out))  # NaN for emotions that do not occur
        assert metrics["own_accuracy"] > 0.8
        return float(metrics["accuracy"])

    assert train("one", 1) > 0.9
    train("again", 1)
    train("other", 2)
    one = (tmp_path / "one").read_bytes()
    assert one == (tmp_path / "again").read_bytes()
    assert one != (tmp_path / "other").read_bytes()


def test_a_face_that_is_hard_to_see_lowers_confidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faces = bars(128, 0)
    monkeypatch.setattr(face_training, "augment", lambda crops, *_: (crops, torch.ones(len(crops))))

    def confidence(flattened: float) -> float:
        training = msgspec.structs.replace(TRAINING, teacher_epochs=0, flattened=flattened)
        train_face(faces, bars(64, 1), tmp_path / "face", seed=1, config=SMALL, training=training)
        with torch.inference_mode():
            logits = load_face(tmp_path / "face")(torch.from_numpy(faces.crops)[:, None].float())[1]
        return float(logits.softmax(1).max(1).values.mean())

    assert confidence(0.9) < 0.35 < confidence(0.0)


def test_faces_without_labels_of_their_own_corpus_are_learned(tmp_path: Path) -> None:
    faces, held_out = bars(128, 0), bars(64, 1)
    mute = Faces(faces.crops, faces.shares, faces.sure, np.full_like(faces.own, -1))
    training = msgspec.structs.replace(TRAINING, teacher_epochs=0)
    metrics = train_face(mute, held_out, tmp_path / "face", seed=1, config=SMALL, training=training)
    assert np.isfinite(metrics["loss"])
    assert metrics["accuracy"] > 0.7


def test_resumed_run_gives_the_same_weights(tmp_path: Path) -> None:
    faces, held_out = bars(96, 0), bars(64, 1)

    class StopError(Exception):
        pass

    def train(name: str, work: Path | None, stop_at: tuple[str, int] | None = None, seed: int = 1) -> None:
        def report(what: str, epoch: int, _: int) -> None:
            if (what, epoch) == stop_at:
                raise StopError

        train_face(
            faces, held_out, tmp_path / name, seed=seed, config=SMALL, training=TRAINING, work=work, report=report
        )

    work = tmp_path / "work"
    train("whole", tmp_path / "other")
    for stop_at in (("teacher of faces", 1), ("face", 2)):
        with pytest.raises(StopError):
            train("parts", work, stop_at)
    assert (work / "face.state").exists()
    with pytest.raises(DataError, match="other settings"):
        train("x", work, seed=2)
    train("parts", work)
    assert not list(work.glob("*.state"))
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "parts").read_bytes()


def test_arrays_that_do_not_belong_together_are_refused() -> None:
    faces = bars(4, 0)
    crops, shares, sure, own = faces.crops, faces.shares, faces.sure, faces.own
    for wrong in (
        (crops[:3], shares, sure, own),
        (crops[:, :40], shares, sure, own),
        (crops.astype(np.float32), shares, sure, own),
        (crops, shares * 2, sure, own),
        (crops, shares, sure + 7, own),
        (crops, shares, sure, own[:2]),
        (crops[:0], shares[:0], sure[:0], own[:0]),
    ):
        with pytest.raises(DataError):
            Faces(*wrong)


def test_shipped_weights_are_small_and_complete() -> None:
    assert WEIGHTS.stat().st_size < 3_500_000
    model = load_face(WEIGHTS)
    assert model.config.crop
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
