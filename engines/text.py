"""The text encoder as the engine layer sees it: MiniLM with its adapters merged, for any number of word pieces."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mien.engines.base import Network
from mien.errors import AssetError
from mien.models.text.encoder import DEFAULT_ADAPTERS, WordTokenizer, text_extractor

if TYPE_CHECKING:
    from torch import nn

_EXAMPLE = "I honestly did not expect it, but this was the loveliest evening we have had in years."


def text_network(folder: Path | str, adapters: Path | str | None = DEFAULT_ADAPTERS) -> Network:
    """`input_ids` and `attention_mask`, (1, T) int64 -> `states` (1, T, 384).

    Args:
        folder: of MiniLM ("minilm-l6-v2" among the assets).
        adapters: fine-tuning; None for the base model.

    Raises:
        AssetError: the folder lacks the model or its tokenizer.
        CheckpointError: the adapters are missing or damaged.
    """
    folder, adapters = Path(folder), None if adapters is None else Path(adapters)

    def build() -> nn.Module:
        from mien.models.text.minilm import load_minilm

        return load_minilm(folder, adapters)

    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise AssetError(f"{folder} holds no model.safetensors; fetch it with `mien assets`")
    pieces = WordTokenizer(folder).tokenize_words(_EXAMPLE.split())
    base = hashlib.sha256((folder / "config.json").read_bytes() + str(weights.stat().st_size).encode()).hexdigest()
    arguments: dict[str, str | int | None] = {
        "folder": str(folder),
        "adapters": None if adapters is None else str(adapters),
    }
    return Network(
        name="text",
        version=f"{text_extractor(adapters)}-{base[:8]}",
        build=build,
        example={"input_ids": pieces.input_ids[None], "attention_mask": np.ones((1, len(pieces.input_ids)), np.int64)},
        outputs=("states",),
        origin=("mien.engines.text:text_network", arguments),
        dynamic={"input_ids": {1: "pieces"}, "attention_mask": {1: "pieces"}, "states": {1: "pieces"}},
    )
