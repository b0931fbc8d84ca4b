"""Words to vectors, the same for training texts and for live speech recognition.

Words are split into word pieces, MiniLM encodes each piece, and a word's vector is the mean of its pieces' states.
Needs no torch: a live worker tokenizes, runs the compiled `mien.engines.text.text_network`, and pools.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from mien.errors import AssetError
from mien.messages import Bool, Float32, Int64
from mien.models.weights import SHIPPED, encoder_digest

TEXT_DIM = 384
MAX_PIECES = 128
TEXT_STEPS = 50  # words in a window of the model
ENCODER_VERSION = 1  # of the code below: what counts as a word, how pieces become a row
DEFAULT_ADAPTERS = SHIPPED.text

# Typographic and plain apostrophes are treated as one character.
_PLAIN = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "."})


@dataclass(frozen=True, eq=False)
class Pieces:
    """Word pieces of one sequence, [CLS] first and [SEP] last.

    Attributes:
        input_ids: (T,), at most MAX_PIECES.
        word_index: (T,), the word that each piece belongs to, -1 for [CLS] and [SEP].
        words: number of words given; the oldest may have no pieces, because they were cut.
    """

    input_ids: Int64
    word_index: Int64
    words: int


class WordTokenizer:
    """MiniLM's own tokenizer, word by word.

    Raises:
        AssetError: the folder has no usable `tokenizer.json`.
    """

    def __init__(self, folder: Path) -> None:
        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # tokenizers raises bare Exception
            raise AssetError(f"{folder} has no usable tokenizer.json ({error}); run `mien assets`") from error
        tokenizer.no_padding()
        tokenizer.no_truncation()
        special = [tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]", "[UNK]")]
        if None in special:
            raise AssetError(f"{folder}/tokenizer.json is not MiniLM's; run `mien assets`")
        self._first, self._last, unknown = (int(token or 0) for token in special)

        def pieces_of(word: str) -> tuple[int, ...]:
            ids = tokenizer.encode(word.translate(_PLAIN), add_special_tokens=False).ids
            return tuple(ids) or (unknown,)

        self.pieces_of = lru_cache(maxsize=50_000)(pieces_of)

    def tokenize_words(self, words: Sequence[str]) -> Pieces:
        """Words to pieces. Beyond MAX_PIECES the oldest words are cut: in a stream the newest matter most."""
        room = MAX_PIECES - 2
        ids: list[int] = []
        index: list[int] = []
        for number in range(len(words) - 1, -1, -1):
            pieces = self.pieces_of(words[number])[: MAX_PIECES - 2]
            if len(pieces) > room:
                break
            room -= len(pieces)
            ids[:0] = pieces
            index[:0] = [number] * len(pieces)
        return Pieces(
            np.array([self._first, *ids, self._last], np.int64), np.array([-1, *index, -1], np.int64), len(words)
        )


def pool_words(states: Float32, pieces: Pieces) -> tuple[Float32, Bool]:
    """Mean state of each word.

    Args:
        states: (T, dim), one for each piece.

    Returns:
        rows (words, dim), zero for words that were cut, and valid (words,).
    """
    inside = pieces.word_index >= 0
    counts = np.bincount(pieces.word_index[inside], minlength=pieces.words)
    rows = np.zeros((pieces.words, states.shape[1]), np.float32)
    np.add.at(rows, pieces.word_index[inside], states[inside])
    valid = counts > 0
    rows[valid] /= counts[valid, None].astype(np.float32)
    return rows, valid


def text_extractor(adapters: Path | None = DEFAULT_ADAPTERS) -> str:
    """Name and version of the rows, for instance "minilm-l6-v2/1+1a2b3c4d". Changes with the adapters' content.

    Raises:
        CheckpointError: the adapters cannot be read, or are damaged.
    """
    name = f"minilm-l6-v2/{ENCODER_VERSION}"
    return name if adapters is None else f"{name}+{encoder_digest(adapters)}"
