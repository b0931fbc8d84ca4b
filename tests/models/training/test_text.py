"""Tuning the text encoder, on a base model of one small layer and sentences that were made up."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from mien.errors import DataError
from mien.messages import EMOTIONS
from mien.models.architecture import ModelConfig
from mien.models.data.corpora import Corpus, CorpusItem
from mien.models.text.encoder import TEXT_STEPS, WordTokenizer, pool_words
from mien.models.text.minilm import load_adapters, load_minilm
from mien.models.training.text import READER, Teacher, TextTraining, teacher_targets, train_text
from mien.models.training.text_batches import (
    Mishearing,
    SamplingConfig,
    TeacherTargets,
    bare_words,
    batches,
    collate,
    cut_words,
    epoch_items,
    sentences,
)
from mien.models.training.text_tuning import SentenceTuner, validate

WIDTH = 24
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "the", "was", "un", "##believable", ".", "'"]
OPTIONS = TextTraining(seed=3, epochs=2, rank=2, learning_rate=0.01, average=0.9, dropout=0.0,
                       teachers=(), sampling=SamplingConfig(batch=4, repeats=()))  # fmt: skip


MODEL = ModelConfig(dim=16, slots=10, dropout=0.0)
train = partial(train_text, model=MODEL)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the real model's, tiny."""
    folder = tmp_path_factory.mktemp("base")
    config = {"vocab_size": len(VOCABULARY), "hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2,
              "intermediate_size": 32, "max_position_embeddings": 128, "layer_norm_eps": 1e-12}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(models.WordPiece({piece: n for n, piece in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    generator = torch.Generator().manual_seed(0)
    shapes = {"embeddings.word_embeddings.weight": (len(VOCABULARY), WIDTH),
              "embeddings.position_embeddings.weight": (128, WIDTH),
              "embeddings.token_type_embeddings.weight": (2, WIDTH),
              "embeddings.LayerNorm.weight": (WIDTH,), "embeddings.LayerNorm.bias": (WIDTH,)}  # fmt: skip
    for name, wide, narrow in (
        ("attention.self.query", WIDTH, WIDTH),
        ("attention.self.key", WIDTH, WIDTH),
        ("attention.self.value", WIDTH, WIDTH),
        ("attention.output.dense", WIDTH, WIDTH),
        ("intermediate.dense", 32, WIDTH),
        ("output.dense", WIDTH, 32),
    ):
        shapes |= {f"encoder.layer.0.{name}.weight": (wide, narrow), f"encoder.layer.0.{name}.bias": (wide,)}
    for name in ("attention.output.LayerNorm", "output.LayerNorm"):
        shapes |= {f"encoder.layer.0.{name}.weight": (WIDTH,), f"encoder.layer.0.{name}.bias": (WIDTH,)}
    tensors = {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}
    tensors |= {name: torch.ones(shape) for name, shape in shapes.items() if name.endswith("Norm.weight")}
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture
def corpora() -> list[Corpus]:
    """Sentiment and emotion both follow from one word."""
    generator = np.random.default_rng(1)
    felt, named = [], []
    for n in range(96):
        word, sign = ("good", 1.0) if generator.random() < 0.5 else ("bad", -1.0)
        text = " ".join(generator.permutation(["the", "film.", "was", word, "unbelievable"]))
        split = "valid" if n % 4 == 0 else "train"
        felt.append(CorpusItem(f"a{n}", split, text=text, sentiment=2 * sign))
        named.append(CorpusItem(f"b{n}", split, text=text, sentiment=sign, coarse=True,
                                emotion="happy" if sign > 0 else "sad"))  # fmt: skip
    return [Corpus("mosi", Path("mosi.csv"), tuple(felt)), Corpus("meld", Path("meld.csv"), tuple(named))]


def stop_after(steps: int) -> Callable[[str, int, int], None]:
    def report(_: str, done: int, __: int) -> None:
        if done == steps:
            raise KeyboardInterrupt

    return report


def test_it_learns_and_ships_the_best_epoch(base: Path, corpora: list[Corpus], tmp_path: Path) -> None:
    out = tmp_path / "weights" / "text.safetensors"
    history = train(corpora, base, out, tmp_path / "work", replace(OPTIONS, epochs=6))
    best = min(range(len(history)), key=lambda epoch: history[epoch]["loss"])
    assert history[best]["loss"] < 0.7 * history[0]["loss"]
    assert history[best]["mosi.non0_acc2"] > 0.9
    assert history[best]["meld.uar"] > 0.9
    tensors, config = load_adapters(out)
    assert config["rank"] == 2
    assert tensors["layers.0.query.up"].abs().sum() > 0
    before, after = (load_minilm(base, *more).state_dict()["layers.0.query.weight"] for more in ((), (out,)))
    assert not torch.equal(before, after)
    assert not list(tmp_path.rglob("*.tmp"))


def test_one_seed_gives_one_result_also_after_resuming(base: Path, corpora: list[Corpus], tmp_path: Path) -> None:
    straight, again, resumed = (tmp_path / name for name in ("straight", "again", "resumed"))
    train(corpora, base, straight / "out", straight, OPTIONS)
    train(corpora, base, again / "out", again, OPTIONS)

    with pytest.raises(KeyboardInterrupt):
        train(corpora, base, resumed / "out", resumed, OPTIONS, report=stop_after(40))  # an epoch has 36 steps
    assert not (resumed / "out").exists()
    train(corpora, base, resumed / "out", resumed, OPTIONS)
    for name in ("out", READER):
        expected = (straight / name).read_bytes()
        assert (again / name).read_bytes() == expected
        assert (resumed / name).read_bytes() == expected
    other = tmp_path / "other"
    train(corpora, base, other / "out", other, replace(OPTIONS, seed=4))
    assert (other / "out").read_bytes() != (straight / "out").read_bytes()


def test_a_work_folder_of_another_run_is_refused(base: Path, corpora: list[Corpus], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(corpora, base, tmp_path / "out", tmp_path, replace(OPTIONS, epochs=3), report=stop_after(36))
    with pytest.raises(DataError, match="belongs to a run with other settings"):
        train(corpora, base, tmp_path / "out", tmp_path, OPTIONS)
    with pytest.raises(DataError, match="belongs to a run with other settings or data"):
        train(relabelled(corpora), base, tmp_path / "out", tmp_path, replace(OPTIONS, epochs=3))


def relabelled(corpora: list[Corpus]) -> list[Corpus]:
    """The corpora with other labels of the same texts."""
    swapped = {"happy": "sad", "sad": "happy"}
    return [
        replace(corpus, items=tuple(
            replace(item, sentiment=None if item.sentiment is None else -item.sentiment,
                    emotion=swapped.get(item.emotion or "", item.emotion))
            for item in corpus.items))
        for corpus in corpora
    ]  # fmt: skip


def test_only_low_rank_factors_biases_and_norms_are_stored(base: Path, corpora: list[Corpus], tmp_path: Path) -> None:
    train(corpora, base, tmp_path / "out", tmp_path / "work", replace(OPTIONS, epochs=1))
    stored = load_file(tmp_path / "out")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    assert not [name for name in stored if name.endswith(".weight") and "_norm" not in name]


def test_test_items_are_never_read(base: Path, corpora: list[Corpus], tmp_path: Path) -> None:
    held_out = CorpusItem("t", "test", text="the film", sentiment=1.0)
    with pytest.raises(DataError, match="none of the corpora has text in a split `train`"):
        train([Corpus("mosi", Path("mosi.csv"), (held_out,))], base, tmp_path / "o", tmp_path, OPTIONS)
    parts = [sentences([replace(corpora[0], items=(*corpora[0].items, held_out))], part) for part in ("train", "valid")]
    assert held_out not in [item for part in parts for items in part.values() for item in items]


def teachers(epochs: int = 12, **changes: object) -> tuple[Teacher, ...]:
    plain = {"seed": 5, "epochs": epochs, "learning_rate": 0.01, "encoder_rate": 1.0, "average": 0.9, "dropout": 0.0,
             "sampling": OPTIONS.sampling}  # fmt: skip
    return (
        Teacher(**plain, name="felt", teaches="sentiment", corpora=("mosi",)),  # type: ignore[arg-type]
        Teacher(**(plain | changes), name="named", teaches="emotion", corpora=("meld",)),  # type: ignore[arg-type]
    )


def test_knowledge_of_the_teacher_is_learned(base: Path, corpora: list[Corpus], tmp_path: Path) -> None:
    """Most sentences have no label, and the teachers have learned from the few that do."""
    felt, named = corpora
    mute = replace(felt, name="mosei", items=tuple(replace(item, sentiment=None) for item in felt.items))
    pair = [replace(felt, items=felt.items[:48]), named]
    options = replace(OPTIONS, teachers=teachers(), taught_weight=1.0, epochs=4)
    parts = sentences([*pair, mute], "train"), sentences(pair, "valid")
    work = tmp_path / "taught"
    targets = teacher_targets(
        options.teachers, *parts, WordTokenizer(base), base, work / "teachers", MODEL, torch.device("cpu")
    )  # as the run below finds them
    assert targets is not None
    texts = [item.text or "" for item in sentences([mute], "train")["mosei"]]
    rows, good = [targets.rows[text] for text in texts], np.array(["good" in text for text in texts])
    assert ((targets.sentiment[rows] > 0) == good).mean() > 0.9
    right = np.where(good, EMOTIONS.index("happy"), EMOTIONS.index("sad"))
    assert (targets.emotions[rows].argmax(1) == right).mean() > 0.9
    history = train([*pair, mute], base, work / "out", work, options)
    # It is off by more than one untrained. Not compared with a run without teachers: of sentences as simple as these,
    # the few labels teach nearly as much, and which run is ahead hangs on how sums are rounded.
    assert history[-1]["mosi.mae"] < 0.4


def test_teacher_outputs_are_cached(base: Path, corpora: list[Corpus], tmp_path: Path,
                                caplog: pytest.LogCaptureFixture) -> None:  # fmt: skip
    caplog.set_level(logging.INFO)
    texts, valid, tokenizer = sentences(corpora, "train"), sentences(corpora, "valid"), WordTokenizer(base)

    def targets_of(chosen: tuple[Teacher, ...], folder: str) -> tuple[TeacherTargets, int]:
        caplog.clear()
        targets = teacher_targets(chosen, texts, valid, tokenizer, base, tmp_path / folder, MODEL, torch.device("cpu"))
        assert targets is not None
        return targets, sum(record.message.startswith("teacher of") for record in caplog.records)

    chosen = teachers(2)
    first, trained = targets_of(chosen, "a")
    assert trained == 2
    again, trained = targets_of(chosen, "a")
    assert trained == 0
    np.testing.assert_array_equal(again.emotions, first.emotions)
    changed, trained = targets_of(teachers(2, seed=6), "a")
    assert trained == 1
    np.testing.assert_array_equal(changed.sentiment, first.sentiment)
    assert (changed.emotions != first.emotions).any()
    texts = sentences(relabelled(corpora), "train")
    assert targets_of(chosen, "a")[1] == 2, "they teach what the labels say"
    texts = sentences(corpora, "train")
    first, _ = targets_of(chosen, "b")
    (damaged,) = (tmp_path / "b").glob("felt-*.safetensors")
    damaged.write_bytes(damaged.read_bytes()[:50])
    mended, trained = targets_of(chosen, "b")
    assert trained == 1
    np.testing.assert_array_equal(mended.sentiment, first.sentiment)


def steps_told(
    corpora: list[Corpus], base: Path, work: Path, options: TextTraining
) -> dict[str, list[tuple[int, int]]]:
    """Steps done and steps in all, as reported of each part of a run, checked to count on by one."""
    progress: dict[str, list[tuple[int, int]]] = {}

    def report(name: str, done: int, total: int) -> None:
        progress.setdefault(name, []).append((done, total))

    train_text(corpora, base, work / "out", work, options, model=MODEL, report=report)
    for steps in progress.values():
        assert [done for done, _ in steps] == list(range(1, len(steps) + 1))
    return progress


def test_every_step_is_reported(base: Path, corpora: list[Corpus], tmp_path: Path) -> None:
    """Also those of batches that are not full: 72 sentences of each corpus in batches of 5."""
    sampling = replace(OPTIONS.sampling, batch=5)
    teach = tuple(replace(teacher, patience=2, sampling=sampling) for teacher in teachers(2))
    progress = steps_told(corpora, base, tmp_path, replace(OPTIONS, teachers=teach, patience=2, sampling=sampling))
    assert list(progress) == ["teacher of felt", "teacher of named", "text"]
    assert {name: len(steps) for name, steps in progress.items()} == {
        "teacher of felt": 2 * 15, "teacher of named": 2 * 15, "text": 2 * 29,
    }  # fmt: skip
    for steps in progress.values():
        assert {total for _, total in steps} == {len(steps)}


def test_a_run_that_stops_early_reports_the_steps_it_did(base: Path, corpora: list[Corpus], tmp_path: Path) -> None:
    """Without a learning rate nothing changes, so that the second epoch is no better on any processor."""
    progress = steps_told(corpora, base, tmp_path, replace(OPTIONS, epochs=5, patience=1, learning_rate=0.0))
    *before, last = progress["text"]
    assert {total for _, total in before} == {5 * 36}
    assert last == (2 * 36, 2 * 36)


def test_teacher_without_its_corpus_adds_no_loss(base: Path, corpora: list[Corpus], tmp_path: Path) -> None:
    train, valid = (sentences(corpora[:1], split) for split in ("train", "valid"))
    targets = teacher_targets(
        teachers(2), train, valid, WordTokenizer(base), base, tmp_path, MODEL, torch.device("cpu")
    )
    assert targets is not None
    assert np.isfinite(targets.sentiment).all()
    assert not targets.emotions.any()
    assert (
        teacher_targets(teachers()[1:], train, valid, WordTokenizer(base), base, tmp_path, MODEL, torch.device("cpu"))
        is None
    )


def test_an_epoch_repeats_and_samples_corpora(corpora: list[Corpus]) -> None:
    items = sentences(corpora, "train")
    sampling = SamplingConfig(repeats=(("mosi", 2.5), ("meld", 0.25)))
    first, second = (list(epoch_items(items, sampling, 7, epoch)) for epoch in (0, 1))
    count = len(items["mosi"])
    assert len(first) == round(2.5 * count) + round(0.25 * count)
    assert first == list(epoch_items(items, sampling, 7, 0))
    assert first != second


def test_labels_of_a_misheard_sentence_count_less(base: Path, corpora: list[Corpus]) -> None:
    items = {"mosi": sentences(corpora, "train")["mosi"]}

    def strongest(misheard: float) -> float:
        sampling = replace(OPTIONS.sampling, misheard=misheard, word_errors=(0.6, 0.6))
        return max(float(batch.sentiment.abs().max()) for batch in batches(items, WordTokenizer(base), sampling, 3, 0))

    assert strongest(1.0) == pytest.approx(strongest(0.0) / 2)


def test_simulated_recogniser_has_the_requested_error_rate() -> None:
    texts = ["the film was good and the end was bad", "a good film is a good thing", "their end was there"] * 3
    mishear, rng = Mishearing(texts), np.random.default_rng(0)
    words = ["the", "film", "was", "good", "and", "the", "end", "was", "bad", "their", "thing", "is", "there"]
    assert mishear(words, 0.0, rng) == words
    assert mishear([], 0.5, rng) == []
    for rate in (0.2, 0.6):
        drawn = [mishear(words, rate, rng) for _ in range(200)]
        kept = np.mean([len(set(words) & set(one)) / len(words) for one in drawn])
        # A wrong word may be one of the sentence, too.
        assert 1 - rate < kept + 0.1 < 1 - rate + 0.45
        assert np.mean([len(one) for one in drawn]) == pytest.approx(len(words) * (1 - 0.1 * rate), rel=0.05)
    assert all(word in " ".join(texts).split() for one in drawn for word in one)
    assert all(mishear(["good"], 1.0, rng) for _ in range(50))  # never nothing


def test_batches_cover_every_item_once(base: Path, corpora: list[Corpus]) -> None:
    items = sentences(corpora, "train")
    made = list(batches(items, WordTokenizer(base), replace(OPTIONS.sampling, misheard=0.0), 3, 0))
    assert sum(len(batch.coarse) for batch in made) == sum(map(len, items.values()))
    for batch in made:
        assert ((batch.words.amax(1) == 4) | (batch.words.amax(1) == 3)).all()  # five words each, or one lost
        assert not ((batch.words >= 0) & ~batch.attention_mask.bool()).any()


def test_reader_sees_one_window_of_the_stream(base: Path) -> None:
    words = ["good", "unbelievable"]
    item, pieces = CorpusItem("a", text=" ".join(words), sentiment=1.0), WordTokenizer(base).tokenize_words(words)
    batch = collate([(item, pieces)])
    assert batch.words.tolist() == [[-1, 0, 1, 1, -1]]
    tuner = SentenceTuner(load_minilm(base), MODEL).eval()
    with torch.no_grad():
        rows, mask = tuner.rows(batch)
        with torch.autocast("cpu", torch.bfloat16):
            states = tuner.encoder(batch.input_ids, batch.attention_mask)[0].float().numpy()
    expected, valid = pool_words(states, pieces)
    assert valid.all()
    np.testing.assert_allclose(rows[0, :2], expected, rtol=1e-5)
    assert not rows[0, 2:].any()
    assert mask[0].tolist() == [1.0, 1.0] + [0.0] * (TEXT_STEPS - 2)


def test_newest_words_of_a_long_text_are_read(base: Path) -> None:
    words = ["good"] * (TEXT_STEPS + 10)
    batch = collate([(CorpusItem("a", text=" ".join(words)), WordTokenizer(base).tokenize_words(words))])
    assert batch.words[0].tolist() == [-1] * 11 + list(range(TEXT_STEPS)) + [-1]


def test_the_reader_is_kept_with_the_adapters(base: Path, corpora: list[Corpus], tmp_path: Path) -> None:
    history = train(corpora, base, tmp_path / "out", tmp_path / "work", replace(OPTIONS, epochs=3))
    best = min(range(len(history)), key=lambda epoch: history[epoch]["loss"])
    tuner = SentenceTuner(load_minilm(base, tmp_path / "out"), MODEL)
    tuner.reader.load_state_dict(load_file(tmp_path / "work" / READER))
    valid = sentences(corpora, "valid")
    # The adapters were rounded to half precision on their way, and are merged before products are rounded to bfloat16.
    assert validate(tuner, valid, WordTokenizer(base))[0] == pytest.approx(history[best]["loss"], abs=0.03)


def test_bare_words_match_recogniser_output() -> None:
    generator = np.random.default_rng(0)
    drawn = [bare_words(["Well,", "I", "didn’t", "...", "know!"], generator) for _ in range(200)]
    assert ["well", "i", "didn't", "know"] in drawn
    assert any(len(words) == 3 for words in drawn)
    assert all(set(words) <= {"well", "i", "didn't", "know"} for words in drawn)
    assert bare_words(["?!"], generator) == ["?!"]


def test_cut_words_keep_a_contiguous_part() -> None:
    generator = np.random.default_rng(0)
    words = [str(n) for n in range(10)]
    for _ in range(100):
        kept = cut_words(words, generator)
        assert 5 <= len(kept) <= 10
        assert kept == words[int(kept[0]) : int(kept[0]) + len(kept)]
    assert cut_words(["a", "b"], generator) == ["a", "b"]
