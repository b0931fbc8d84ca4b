"""Fine-tuning the text encoder on labelled sentences, so that word states carry sentiment and emotion.

Only low-rank adapters are shipped. Trained on labels alone they gain on one corpus and lose on another. So fully tuned
teachers, one per task, come first; the adapters learn from their outputs on all sentences, and from the labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from mien.models.architecture import ModelConfig
from mien.models.data.corpora import Corpus
from mien.models.text.encoder import WordTokenizer
from mien.models.text.minilm import adapter_state, add_adapters, load_minilm, save_adapters
from mien.models.training.loop import Progress
from mien.models.training.text_batches import batches, sentences
from mien.models.training.text_teachers import TEACHERS, Teacher, teacher_targets
from mien.models.training.text_tuning import SentenceTuner, Tuning, normalise, tune
from mien.models.weights.tensors import write_tensors

READER = "reader.safetensors"  # CM-MSF with text as its only modality, trained with the adapters


@dataclass(frozen=True)
class TextTraining(Tuning):
    """How the adapters are trained. `rank`: of each. `teachers`: without any they learn from labels alone."""

    learning_rate: float = 6e-4
    taught_weight: float = 1.0
    rank: int = 64
    teachers: tuple[Teacher, ...] = TEACHERS
    threads: int = 1


def train_text(
    corpora: Sequence[Corpus],
    base: Path,
    out: Path,
    work: Path,
    options: TextTraining | None = None,
    model: ModelConfig | None = None,
    device: torch.device | None = None,
    report: Progress | None = None,
) -> list[dict[str, float]]:
    """Fine-tune, and write the adapters of the epoch with the lowest validation loss to `out`.

    Args:
        corpora: with text, and "train" and "valid" splits between them; "test" is never read.
        base: folder of the base model. work: for the teachers, and for the state to resume a stopped run from.
        model: sizes of CM-MSF, whose text reader is trained jointly and written to `work` (READER).
        device: default: the CPU (see `training_device`).

    Returns:
        validation figures of each epoch.

    Raises:
        DataError: no text to train or to validate on, or `work` holds the state of a run with other options.
    """
    options, model = options or TextTraining(), model or ModelConfig()
    device = device or torch.device("cpu")
    torch.set_num_threads(options.threads)
    tokenizer = WordTokenizer(base)
    train, valid = sentences(corpora, "train"), sentences(corpora, "valid")
    targets = teacher_targets(options.teachers, train, valid, tokenizer, base, work / "teachers", model, device, report)
    torch.manual_seed(options.seed)
    tuner = SentenceTuner(load_minilm(base, dropout=options.dropout), model).to(device)
    normalise(tuner, batches(train, tokenizer, options.sampling, options.seed, 0))
    tuned = add_adapters(tuner.encoder, options.rank)
    tuner.to(device)  # the adapters were drawn on the CPU
    run = tune("text", tuner, tuned, train, valid, tokenizer, options, work / "text.state", targets, report)
    assert run.best is not None, "every epoch is validated"
    best = run.best_network().cpu()
    card: dict[str, object] = {"corpora": sorted(train), "options": asdict(options), "valid": run.best.figures}
    save_adapters(adapter_state(best.encoder), load_minilm(base), out, card)
    write_tensors(work / READER, best.reader.state_dict())
    return [evaluation.figures for evaluation in run.history]
