"""Tuning the text encoder on labelled sentences, so that word states carry sentiment and emotion.

What ships is small: low-rank adapters. On labels alone they have to trade one corpus for another. So teachers, tuned as
a whole and each on one thing, first say of every sentence what they think; the adapters then learn both from all of it.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from mien.files import write_file
from mien.models.architecture import ModelConfig
from mien.models.data.corpora import Corpus, read_corpus
from mien.models.text.encoder import WordTokenizer
from mien.models.text.minilm import adapter_state, add_adapters, load_minilm, save_adapters
from mien.models.training.device import training_device
from mien.models.training.text_batches import batches, sentences
from mien.models.training.text_teachers import TEACHERS, Teacher, ask
from mien.models.training.text_tuning import SentenceTuner, Tuning, best_epoch, normalise, tune
from mien.models.weights.tensors import write_tensors

READER = "reader.safetensors"  # CM-MSF with text alone, as it was trained along


@dataclass(frozen=True)
class TextTraining(Tuning):
    """How the adapters are trained. `rank`: of each. `teachers`: none, and they learn from labels alone."""

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
    after_epoch: Callable[[int, dict[str, float]], None] | None = None,
    model: ModelConfig | None = None,
    device: torch.device | None = None,
    report: Callable[[str, int, int], None] | None = None,
) -> list[dict[str, float]]:
    """Tune, and write the adapters of the epoch with the lowest validation loss to `out`.

    Args:
        corpora: with text, and "train" and "valid" splits between them; "test" is never read.
        base: folder of the base model. work: for checkpoints; a run that finds its own there goes on from them.
        model: sizes of CM-MSF, whose reader of text is trained along and left in `work` (READER).
        after_epoch: told the number of each epoch and its validation figures, once its checkpoint is written.
        device: where to compute, the processor by default (see `training_device`).
        report: called after each step with who is trained, the steps done, and all steps.

    Returns:
        validation figures of each epoch.

    Raises:
        DataError: no text to train or to validate on.
        CheckpointError: `work` holds a run with other options.
    """
    options, model = options or TextTraining(), model or ModelConfig()
    device = device or torch.device("cpu")
    torch.set_num_threads(options.threads)
    tokenizer = WordTokenizer(base)
    train, valid = sentences(corpora, "train"), sentences(corpora, "valid")
    lessons = ask(options.teachers, train, valid, tokenizer, base, work / "teachers", model, device, report)
    torch.manual_seed(options.seed)
    tuner = SentenceTuner(load_minilm(base, dropout=options.dropout), model).to(device)
    normalise(tuner, batches(train, tokenizer, options.diet, options.seed, 0))
    tuned = add_adapters(tuner.encoder, options.rank)
    tuner.to(device)  # the adapters were drawn on the processor

    def keep(epoch: int, figures: dict[str, float]) -> None:
        card: dict[str, object] = {"corpora": sorted(train), "options": asdict(options), "valid": figures}
        save_adapters(adapter_state(tuner.encoder), load_minilm(base), work / f"epoch-{epoch + 1}.safetensors", card)
        write_tensors(work / f"{epoch + 1}-{READER}", tuner.reader.state_dict())

    told = None if report is None else partial(report, "text")
    history = tune(tuner, tuned, train, valid, tokenizer, options, work, keep, lessons, after_epoch, told)
    out.parent.mkdir(parents=True, exist_ok=True)
    best = best_epoch(history) + 1
    for made, kept in ((f"epoch-{best}.safetensors", out), (f"{best}-{READER}", work / READER)):
        write_file(kept, (work / made).read_bytes())
    return history


def main() -> None:
    """`python -m mien.models.training.text CORPUS... --base FOLDER --work FOLDER --out FILE`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpora", type=Path, nargs="+", help="MOSI, MOSEI, GoEmotions and MELD tables")
    parser.add_argument("--base", type=Path, required=True, help="folder of MiniLM")
    parser.add_argument("--out", type=Path, required=True, help="where the adapters go, .safetensors")
    parser.add_argument("--work", type=Path, required=True, help="checkpoints and log; resumes from there")
    parser.add_argument("--seed", type=int, default=1111)
    parser.add_argument("--epochs", type=int, default=TextTraining.epochs)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(message)s",
        handlers=[logging.FileHandler(given.work / "training.log", encoding="utf-8"), logging.StreamHandler()],
    )
    options = TextTraining(seed=given.seed, epochs=given.epochs, threads=given.threads)
    train_text([read_corpus(path) for path in given.corpora], given.base, given.out, given.work, options,
               device=training_device(given.device))  # fmt: skip


if __name__ == "__main__":
    main()
