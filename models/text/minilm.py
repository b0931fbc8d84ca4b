"""The text encoder's network: MiniLM (a 6-layer BERT of width 384) and its low-rank adapters.

The adapters take a few megabytes and are merged into the base weights when the network is built, so that an engine
runs plain MiniLM. Base weights: sentence-transformers/all-MiniLM-L6-v2. LoRA: Hu et al., ICLR 2022.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mien.errors import AssetError, CheckpointError
from mien.models.weights.tensors import read_tensors, write_tensors

ADAPTER_FORMAT = "mien-text-adapters-1"


@dataclass(frozen=True)
class MiniLMConfig:
    """Sizes, as the base model's config.json names them."""

    vocab_size: int = 30522
    hidden_size: int = 384
    num_hidden_layers: int = 6
    num_attention_heads: int = 12
    intermediate_size: int = 1536
    max_position_embeddings: int = 512
    layer_norm_eps: float = 1e-12


class LowRankLinear(nn.Linear):
    """A Linear with a frozen weight W, tuned as W + up @ down."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.down = nn.Parameter(torch.empty(rank, linear.in_features))
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return super().forward(x) + F.linear(F.linear(x, self.down), self.up)


class Layer(nn.Module):
    """One transformer layer with post-norm, as in BERT."""

    def __init__(self, config: MiniLMConfig, dropout: float) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.attended = nn.Linear(width, width)
        self.attended_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.widen = nn.Linear(width, config.intermediate_size)
        self.narrow = nn.Linear(config.intermediate_size, width)
        self.narrow_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """From `x` (B, T, width) and `bias` (B, 1, 1, T), added to the attention logits, to (B, T, width)."""
        query, key, value = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, T, width / heads)
            for project in (self.query, self.key, self.value)
        )
        # Not the fused kernel: for sentences, its backward pass costs a third of all training time on a CPU.
        logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + bias
        mixed = logits.softmax(-1).to(value.dtype) @ value
        x = self.attended_norm(x + self.dropout(self.attended(mixed.transpose(1, 2).flatten(-2))))
        return cast(Tensor, self.narrow_norm(x + self.dropout(self.narrow(F.gelu(self.widen(x))))))


class MiniLM(nn.Module):
    """Word pieces to states."""

    def __init__(self, config: MiniLMConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(Layer(config, dropout) for _ in range(config.num_hidden_layers))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """input_ids (B, T) int64, attention_mask (B, T) int64, 1 = a piece -> states (B, T, width)."""
        x = self.words(input_ids) + self.positions.weight[: input_ids.shape[1]]
        x = self.dropout(self.norm(x))
        bias = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * -1e9
        for layer in self.layers:
            x = layer(x, bias)
        return cast(Tensor, x)


_LAYER_NAMES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attended": "attention.output.dense",
    "attended_norm": "attention.output.LayerNorm",
    "widen": "intermediate.dense",
    "narrow": "output.dense",
    "narrow_norm": "output.LayerNorm",
}
_TUNED = ("query", "key", "value", "attended", "widen", "narrow")


def load_minilm(folder: Path, adapters: Path | None = None, dropout: float = 0.0) -> MiniLM:
    """MiniLM from a folder with `config.json` and `model.safetensors`, in evaluation mode.

    Args:
        adapters: a file written by `save_adapters`, merged into the weights; None for the base model.

    Raises:
        AssetError: the folder does not hold this model.
        CheckpointError: the adapters cannot be read or belong to another model.
    """
    try:
        known = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = MiniLMConfig(**{name: known[name] for name in asdict(MiniLMConfig())})
        stored = load_file(folder / "model.safetensors")
        model = MiniLM(config, dropout)
        model.load_state_dict(_from_bert(stored, config))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise AssetError(f"{folder} does not hold MiniLM ({error}); fetch it with `mien assets`") from error
    if adapters is not None:
        merge_adapters(model, adapters)
    return model.eval()


def add_adapters(model: MiniLM, rank: int) -> list[nn.Parameter]:
    """Make a model tunable: low-rank updates of every Linear, and full biases and norms.

    Returns:
        the parameters to train; all others are frozen.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for layer in model.layers:
        for name in _TUNED:
            setattr(layer, name, LowRankLinear(getattr(layer, name), rank))
    tuned = [parameter for name, parameter in model.named_parameters() if _is_tuned(name)]
    for parameter in tuned:
        parameter.requires_grad_(True)
    return tuned


def adapter_state(model: MiniLM) -> dict[str, Tensor]:
    """The tuned parameters by name: low-rank factors, biases and norms."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if _is_tuned(name)}


def save_adapters(state: dict[str, Tensor], base: MiniLM, path: Path, card: dict[str, object]) -> None:
    """Write `adapter_state` as fp16: factors as they are, biases and norms as differences from `base`.

    Args:
        card: corpora, options and validation figures, kept as JSON in the file's metadata.
    """
    plain = dict(base.named_parameters())
    tensors = {
        name: (value - plain[name].to(value) if name in plain else value).half() for name, value in state.items()
    }
    rank = next(value.shape[0] for name, value in state.items() if name.endswith(".down"))
    # A single entry: safetensors writes several in varying order, and equal runs must give equal files.
    about = {"format": ADAPTER_FORMAT, "config": {**asdict(base.config), "rank": rank}, "card": card}
    write_tensors(path, tensors, {"mien": json.dumps(about, sort_keys=True)})


def load_adapters(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Tensors written by `save_adapters`, in float32, and the config they were made for.

    Raises:
        CheckpointError: not such a file.
    """
    tensors, metadata = read_tensors(path, "text adapters", CheckpointError)
    about = json.loads(metadata.get("mien", "{}"))
    if about.get("format") != ADAPTER_FORMAT:
        raise CheckpointError(f"{path} does not hold text adapters of this version; train them anew")
    return {name: tensor.float() for name, tensor in tensors.items()}, about["config"]


@torch.no_grad()
def merge_adapters(model: MiniLM, path: Path) -> None:
    """Add the adapters of a file to the weights of a plain model, in place.

    Raises:
        CheckpointError: these are not adapters, or they belong to another model.
    """
    tensors, _ = load_adapters(path)
    weights = dict(model.named_parameters())
    try:
        for name, value in tensors.items():
            stem, _, leaf = name.rpartition(".")
            if leaf == "up":
                weights[f"{stem}.weight"].add_(value @ tensors[f"{stem}.down"])
            elif leaf != "down":
                weights[name].add_(value)
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path} holds adapters of another model ({error})") from error


def _is_tuned(name: str) -> bool:
    stem, _, leaf = name.rpartition(".")
    return name.startswith("layers.") and (leaf in ("up", "down", "bias") or stem.endswith("_norm"))


def _from_bert(stored: dict[str, Tensor], config: MiniLMConfig) -> dict[str, Tensor]:
    """BERT's names to ours. Only one sentence is ever read, so its segment embedding is added to the positions."""
    segment = stored["embeddings.token_type_embeddings.weight"][0]
    state = {
        "words.weight": stored["embeddings.word_embeddings.weight"],
        "positions.weight": stored["embeddings.position_embeddings.weight"] + segment,
        "norm.weight": stored["embeddings.LayerNorm.weight"],
        "norm.bias": stored["embeddings.LayerNorm.bias"],
    }
    for number, (name, bert_name), leaf in product(
        range(config.num_hidden_layers), _LAYER_NAMES.items(), ("weight", "bias")
    ):
        state[f"layers.{number}.{name}.{leaf}"] = stored[f"encoder.layer.{number}.{bert_name}.{leaf}"]
    return {name: value.float() for name, value in state.items()}
