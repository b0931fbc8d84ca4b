from __future__ import annotations

import numpy as np
import pytest
import torch

from mien.messages import ModalitySpec
from mien.models.architecture import ModelConfig
from mien.models.data.datasets import Labels, RawRows, Sample, make_track
from mien.models.training.speech import slotted
from mien.models.voice.columns import ROW, STATE, WEIGHT
from mien.models.voice.reference import SHARE, Reference, compare
from mien.models.voice_reader import VoiceReader

SPEC = ModalitySpec(name="audio", dim=ROW, rate_hz=50, steps=250, extractor="made")


@pytest.fixture(scope="module")
def reader() -> VoiceReader:
    torch.manual_seed(0)
    made = VoiceReader(SPEC, ModelConfig(dim=16).fitted([SPEC])).eval()
    made.mean.copy_(torch.randn(ROW))
    made.std.copy_(torch.rand(ROW) + 0.5)
    return made


@pytest.fixture(scope="module")
def rows() -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.random.default_rng(0).standard_normal((250, ROW)).astype(np.float32)


@torch.no_grad()
def test_masked_values_change_nothing(reader: VoiceReader) -> None:
    torch.manual_seed(1)
    x, mask = torch.randn(2, 250, ROW), (torch.rand(2, 250) < 0.6).float()
    mask[1, 100:] = 0
    expected = reader(x, mask)
    x[mask == 0] = float("nan")
    again = reader(x, mask)
    assert torch.equal(again.hidden, expected.hidden)
    assert torch.equal(again.observed, expected.observed)
    assert expected.hidden.shape == (2, 25, 16)
    assert not expected.hidden[1, 10:].any()
    nothing = reader(x, torch.zeros_like(mask))
    assert not nothing.hidden.any()
    assert not nothing.observed.any()


@torch.no_grad()
def test_population_reference_shifts_states_by_the_untaken_part(reader: VoiceReader, rows: np.ndarray) -> None:
    raw = compare(rows, None)
    mean = reader.mean[:WEIGHT].numpy()
    mask = torch.ones(1, 250)
    seen: list[torch.Tensor] = []
    hook = reader.direct.register_forward_hook(lambda _, given, __: seen.append(given[0].clone()))
    for reference in (None, Reference(mean, 0.3), Reference(mean, 1.0, True)):
        reader(torch.from_numpy(compare(raw, reference))[None], mask)
    hook.remove()
    states = STATE.stop - STATE.start
    for other, weight, given in zip(seen[1:], (0.3, 1.0), (0.0, 1.0), strict=True):
        left = weight * (1.0 - SHARE) * reader.mean[STATE] / reader.std[STATE]
        torch.testing.assert_close(other[:, :states], seen[0][:, :states] + left, atol=1e-4, rtol=1e-4)
        assert other[0, states : states + 2].tolist() == pytest.approx([weight, given], abs=1e-6)


@torch.no_grad()
def test_averaged_slots_equal_their_rows(reader: VoiceReader, rows: np.ndarray) -> None:
    valid = np.random.default_rng(1).random(250) < 0.7
    valid[[0, -1]] = True
    raw = RawRows(compare(rows, None), valid, np.arange(250, dtype=np.int64) * 20_000_000 + 10_000_000)
    sample = Sample(Labels(id="x", corpus="made"), {"audio": make_track(SPEC, raw)})
    clip = slotted(sample, 10)
    track = sample.tracks["audio"]
    whole = reader(torch.from_numpy(track.values)[None], torch.from_numpy(track.mask)[None])
    slots = reader(torch.from_numpy(compare(clip.values, None))[None], torch.from_numpy(clip.observed)[None])
    torch.testing.assert_close(slots.observed, whole.observed)
    torch.testing.assert_close(slots.hidden, whole.hidden, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_order_of_states_does_not_matter(reader: VoiceReader, rows: np.ndarray) -> None:
    mask = torch.ones(1, 250)
    first = torch.from_numpy(compare(rows, None))[None]
    other = first.clone()
    other[..., STATE] = other[:, torch.randperm(250), STATE]
    torch.testing.assert_close(reader(other, mask).hidden, reader(first, mask).hidden, atol=1e-4, rtol=1e-4)
