"""Words to vectors: tokenizing, MiniLM, its adapters, and the compiled form."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mien.assets import asset_path
from mien.config import AssetsConfig
from mien.engines.selection import open_engine
from mien.engines.text import text_network
from mien.errors import AssetError, CheckpointError, MienError
from mien.models.text.encoder import MAX_PIECES, TEXT_DIM, WordTokenizer, pool_words, text_extractor
from mien.models.text.minilm import ADAPTER_FORMAT, MiniLM, adapter_state, add_adapters, load_minilm, save_adapters

pytestmark = pytest.mark.assets


@pytest.fixture(scope="module")
def base() -> Path:
    try:
        return asset_path("minilm-l6-v2", AssetsConfig(offline=True))
    except MienError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> WordTokenizer:
    return WordTokenizer(base)


@pytest.fixture(scope="module")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[MiniLM, Path]:
    """A model whose adapters all do something, and the file that they were saved to."""
    torch.manual_seed(5)
    model = load_minilm(base)
    with torch.no_grad():
        for parameter in add_adapters(model, rank=32):
            parameter.add_(torch.randn_like(parameter) * 0.01)
    path = tmp_path_factory.mktemp("adapters") / "text.safetensors"
    save_adapters(adapter_state(model), load_minilm(base), path, {"corpora": ["made up"]})
    return model, path


def states_of(model: MiniLM, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        states: torch.Tensor = model(torch.from_numpy(ids), torch.ones(ids.shape, dtype=torch.int64))
    return states.numpy()


def test_words_keep_their_pieces(tokenizer: WordTokenizer) -> None:
    pieces = tokenizer.tokenize_words(["It", "wasn’t", "un-believable,", "\u200b"])
    assert pieces.input_ids[0] == 101
    assert pieces.input_ids[-1] == 102
    assert pieces.word_index.tolist() == [-1, 0, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, -1]
    assert pieces.words == 4
    plain = tokenizer.tokenize_words(["it", "wasn't", "un-believable,", "\u200b"])
    np.testing.assert_array_equal(pieces.input_ids, plain.input_ids)


def test_empty_text_is_two_pieces(tokenizer: WordTokenizer) -> None:
    pieces = tokenizer.tokenize_words([])
    assert pieces.input_ids.tolist() == [101, 102]
    rows, valid = pool_words(np.ones((2, TEXT_DIM), np.float32), pieces)
    assert rows.shape == (0, TEXT_DIM)
    assert valid.shape == (0,)


def test_oldest_words_are_dropped(tokenizer: WordTokenizer) -> None:
    pieces = tokenizer.tokenize_words([*["old"] * 5, *["new"] * (MAX_PIECES - 2)])
    assert len(pieces.input_ids) == MAX_PIECES
    assert pieces.word_index[1] == 5
    rows, valid = pool_words(np.ones((MAX_PIECES, TEXT_DIM), np.float32), pieces)
    assert not valid[:5].any()
    assert valid[5:].all()
    assert not rows[:5].any()


def test_a_word_longer_than_the_window_still_has_a_row(tokenizer: WordTokenizer) -> None:
    pieces = tokenizer.tokenize_words(["short", "x-" * 200])
    assert len(pieces.input_ids) == MAX_PIECES
    assert set(pieces.word_index.tolist()) == {-1, 1}


def test_a_row_is_the_mean_of_its_pieces(tokenizer: WordTokenizer) -> None:
    pieces = tokenizer.tokenize_words(["it", "wasn't"])
    states = np.arange(len(pieces.input_ids), dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)
    rows, valid = pool_words(states, pieces)
    assert valid.all()
    np.testing.assert_allclose(rows, [[1, 1, 1], [3, 3, 3]])  # pieces 1, and 2 to 4


def test_equals_the_published_model(base: Path, tokenizer: WordTokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    reference = transformers.BertModel.from_pretrained(base).eval()
    ids = tokenizer.tokenize_words(["well,", "that", "was", "rather", "un-believable", "I'd", "say"]).input_ids[None]
    with torch.no_grad():
        expected = reference(torch.from_numpy(ids)).last_hidden_state.numpy()
    np.testing.assert_allclose(states_of(load_minilm(base), ids), expected, atol=1e-5)


def test_padding_changes_nothing(base: Path, tokenizer: WordTokenizer) -> None:
    model = load_minilm(base)
    ids = tokenizer.tokenize_words(["quite", "good"]).input_ids
    padded = torch.tensor([[*ids, 7, 8, 9]])
    mask = torch.tensor([[1] * len(ids) + [0] * 3])
    with torch.no_grad():
        states = model(padded, mask)[:, : len(ids)].numpy()
    np.testing.assert_allclose(states, states_of(model, ids[None]), atol=1e-5)


def test_merged_adapters_equal_the_tuned_model(
    base: Path, tokenizer: WordTokenizer, tuned: tuple[MiniLM, Path]
) -> None:
    model, path = tuned
    ids = tokenizer.tokenize_words(["I", "never", "liked", "it,", "honestly"]).input_ids[None]
    merged, plain = states_of(load_minilm(base, path), ids), states_of(load_minilm(base), ids)
    np.testing.assert_allclose(merged, states_of(model, ids), atol=2e-2)  # stored as fp16
    assert np.abs(merged - plain).max() > 0.2
    assert path.stat().st_size < 3_000_000


def test_extractor_names_the_content_of_the_adapters(base: Path, tuned: tuple[MiniLM, Path], tmp_path: Path) -> None:
    _, path = tuned
    other = tmp_path / "other.safetensors"
    save_adapters(adapter_state(tuned[0]), load_minilm(base), other, {"corpora": ["others"]})
    names = {text_extractor(None), text_extractor(path), text_extractor(other)}
    assert len(names) == 3
    with pytest.raises(CheckpointError, match=r"absent\.safetensors cannot be read as weights"):
        text_extractor(tmp_path / "absent.safetensors")


def test_every_length_in_onnx_equals_torch(base: Path, tuned: tuple[MiniLM, Path], tmp_path: Path) -> None:
    _, path = tuned
    engine = open_engine(text_network(base, path), engine="onnx", cache=tmp_path)
    assert engine.id == "onnx-fp32"
    model = load_minilm(base, path)
    generator = np.random.default_rng(2)
    for length in (3, 4, 17, MAX_PIECES):
        ids = generator.integers(1000, 30000, (1, length))
        states = engine.infer({"input_ids": ids, "attention_mask": np.ones_like(ids)})["states"]
        assert states.shape == (1, length, TEXT_DIM)
        np.testing.assert_allclose(states, states_of(model, ids), atol=1e-4)


def test_invalid_folders_and_files(base: Path, tmp_path: Path) -> None:
    with pytest.raises(AssetError, match="fetch it with `mien assets`"):
        load_minilm(tmp_path)
    with pytest.raises(AssetError, match="run `mien assets`"):
        WordTokenizer(tmp_path)
    with pytest.raises(AssetError, match=r"holds no model\.safetensors"):
        text_network(tmp_path)
    (tmp_path / "torn").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="cannot read text adapters"):
        load_minilm(base, tmp_path / "torn")
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign")
    with pytest.raises(CheckpointError, match="does not hold text adapters"):
        load_minilm(base, tmp_path / "foreign")
    about = json.dumps({"format": ADAPTER_FORMAT, "config": {}})
    save_file({"layers.9.query.bias": torch.zeros(1)}, tmp_path / "larger", metadata={"mien": about})
    with pytest.raises(CheckpointError, match="adapters of another model"):
        load_minilm(base, tmp_path / "larger")
