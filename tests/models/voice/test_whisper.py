"""The voice encoder against what it is cut from: Whisper in two other implementations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import ctranslate2
import numpy as np
import pytest
import torch
from faster_whisper.feature_extractor import FeatureExtractor
from hypothesis import given
from hypothesis import strategies as st

from mien.assets import asset_path
from mien.config import AssetsConfig
from mien.errors import AssetError
from mien.messages import Float32
from mien.models.voice.encoder import BLOCK_FRAMES, LATER_FRAMES, VOICE_DIM, WINDOW, WINDOW_FRAMES
from mien.models.voice.whisper import LAYERS, VoiceEncoder, load_voice, read_ctranslate2

if TYPE_CHECKING:
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

pytestmark = pytest.mark.assets


@pytest.fixture(scope="module")
def folder() -> Path:
    return asset_path("whisper-tiny.en", AssetsConfig())


@pytest.fixture(scope="module")
def encoder(folder: Path) -> VoiceEncoder:
    return load_voice(folder)


@pytest.fixture(scope="module")
def sound() -> Float32:
    """Two seconds that begin and end with silence, so that it does not matter how they are continued."""
    t = np.arange(WINDOW) / 16_000
    voice = np.sum([np.sin(2 * np.pi * (110 * t + 30 * t * t) * k) / k for k in range(1, 25)], axis=0)
    loud = 0.2 * ((t > 0.2) & (t < 1.8)) * (1 + np.sin(2 * np.pi * 4 * t))
    return np.asarray(voice * loud, np.float32)


def transformers_encoder(folder: Path) -> WhisperEncoder:
    """All four layers of it, with the file's weights."""
    # Here: importing it takes two seconds, in each process that runs tests.
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    stored = {name: torch.from_numpy(value.astype(np.float32)) for name, value in read_ctranslate2(
        folder / "model.bin").items() if name.startswith("encoder/")}  # fmt: skip
    config = WhisperConfig(
        d_model=VOICE_DIM, encoder_layers=4, encoder_attention_heads=6, encoder_ffn_dim=4 * VOICE_DIM,
        max_source_positions=WINDOW_FRAMES, num_mel_bins=80,
    )  # fmt: skip
    model, state = WhisperEncoder(config).eval(), {}
    state["embed_positions.weight"] = stored["encoder/position_encodings/encodings"][:WINDOW_FRAMES]
    norms = [("layer_norm", "encoder/layer_norm")]
    for n in range(4):
        own, theirs = f"layers.{n}", f"encoder/layer_{n}"
        norms += [(f"{own}.self_attn_layer_norm", f"{theirs}/self_attention/layer_norm"),
                  (f"{own}.final_layer_norm", f"{theirs}/ffn/layer_norm")]  # fmt: skip
        for leaf in ("weight", "bias"):
            parts = stored[f"{theirs}/self_attention/linear_0/{leaf}"].chunk(3)
            for name, part in zip("qkv", parts, strict=True):
                state[f"{own}.self_attn.{name}_proj.{leaf}"] = part
            state[f"{own}.self_attn.out_proj.{leaf}"] = stored[f"{theirs}/self_attention/linear_1/{leaf}"]
            for layer in (0, 1):
                state[f"{own}.fc{layer + 1}.{leaf}"] = stored[f"{theirs}/ffn/linear_{layer}/{leaf}"]
        assert not state.pop(f"{own}.self_attn.k_proj.bias").any()
    for layer in (1, 2):
        state |= {f"conv{layer}.{leaf}": stored[f"encoder/conv{layer}/{leaf}"] for leaf in ("weight", "bias")}
    for own, theirs in norms:
        state |= {f"{own}.weight": stored[f"{theirs}/gamma"], f"{own}.bias": stored[f"{theirs}/beta"]}
    model.load_state_dict(state)
    return model


def test_spectrogram_equals_whispers_at_one_level(encoder: VoiceEncoder, sound: Float32) -> None:
    ours = encoder.spectrogram(torch.from_numpy(sound[None]))[0].numpy()
    theirs = FeatureExtractor(feature_size=80)(sound, padding=0)
    assert ours.shape == theirs.shape == (80, 2 * WINDOW_FRAMES)
    np.testing.assert_allclose(ours, theirs - theirs.max() + 1.0, atol=2e-4)


@torch.no_grad()
@pytest.mark.parametrize("decibels", [-30.0, 12.0])
def test_microphone_level_does_not_matter(encoder: VoiceEncoder, sound: Float32, decibels: float) -> None:
    louder = (sound * 10.0 ** (decibels / 20.0)).astype(np.float32)
    states = encoder(torch.from_numpy(np.stack([sound, louder])))
    torch.testing.assert_close(states[1], states[0], atol=0.02, rtol=0.02)


@torch.no_grad()
def test_states_equal_the_middle_layer_of_the_full_encoder(folder: Path, encoder: VoiceEncoder, sound: Float32) -> None:
    mel = encoder.spectrogram(torch.from_numpy(sound[None]))
    reference = transformers_encoder(folder)
    outputs = reference(mel, output_hidden_states=True)
    # That the file was read as its own library reads it: at the end of all layers they say the same.
    whisper = ctranslate2.models.Whisper(str(folder), compute_type="float32", intra_threads=1)
    end = np.array(whisper.encode(ctranslate2.StorageView.from_array(np.ascontiguousarray(mel.numpy()))))
    np.testing.assert_allclose(outputs.last_hidden_state.numpy(), end, atol=2e-3)
    states = reference.layers[LAYERS].self_attn_layer_norm(outputs.hidden_states[LAYERS])
    last = WINDOW_FRAMES - LATER_FRAMES
    expected = states[:, last - BLOCK_FRAMES : last].mean(1)
    torch.testing.assert_close(encoder(torch.from_numpy(sound[None])), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_it_tells_sounds_apart(encoder: VoiceEncoder, sound: Float32) -> None:
    noise = np.random.default_rng(0).normal(0, 0.05, WINDOW).astype(np.float32)
    states = encoder(torch.from_numpy(np.stack([sound, noise, np.zeros_like(sound)])))
    assert torch.cdist(states, states)[0, 1] > 5
    assert torch.cdist(states, states)[0, 2] > 5


def test_folder_without_the_model_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"not a model", b"\6\0\0\0\3\0Wh\0\3\0\0\0\0\0\0\0"):
        (tmp_path / "model.bin").write_bytes(content)
        with pytest.raises(AssetError, match=r"does not hold Whisper tiny\.en"):
            load_voice(tmp_path)


@pytest.fixture(scope="module")
def beginning(folder: Path) -> bytes:
    with (folder / "model.bin").open("rb") as file:
        return file.read(4000)


@given(cut=st.integers(0, 4000), at=st.integers(0, 200), byte=st.integers(0, 255))
def test_damaged_file_is_a_clear_error(
    beginning: bytes, tmp_path_factory: pytest.TempPathFactory, cut: int, at: int, byte: int
) -> None:
    content = bytearray(beginning[:cut])
    if at < len(content):
        content[at] = byte
    damaged = tmp_path_factory.getbasetemp() / "damaged.bin"
    damaged.write_bytes(content)
    with pytest.raises(ValueError, match="not a complete file of CTranslate2"):
        read_ctranslate2(damaged)
