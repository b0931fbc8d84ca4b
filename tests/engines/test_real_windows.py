"""Every engine reproduces the reference's outputs on real windows: from the corpora, if present, and the sample.

`MIEN_CORPORA` names the folder of the corpora. A few items of each go through the live extractors; their windows,
mixtures of modalities from different items, and partly masked windows go through the shipped weights.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from mien.engines.base import Array, Engine, Precision
from mien.engines.cache import Cache
from mien.engines.cmmsf import OUTPUTS, whole_network
from mien.engines.golden import FP32_TOLERANCE, REDUCED_TOLERANCE
from mien.engines.predictor import Predictor
from mien.engines.selection import find_backend, open_backend, open_engine
from mien.errors import EngineError
from mien.install import SAMPLE
from mien.messages import ModalitySpec
from mien.models.checkpoint import Checkpoint, load_checkpoint
from mien.models.data.corpora import CorpusItem, read_corpus
from mien.models.data.datasets import Labels, RawRows, Sample, make_track, window
from mien.stream.offline.extractors import Extractors
from tests.engines.networks import PAIRS
from tests.windows import Window, predict_anew

pytestmark = pytest.mark.assets

# Corpora by their place in the folder, and clips without labels.
LABELLED = ("text/mosi.csv", "text/mosei.csv", "text/goemotions_valid.csv", "text/meld_valid.csv", "speech/ravdess",
            "speech/emodb", "face/fer2013_valid.npz")  # fmt: skip
CLIPS = ("video/grid_*.mpg", "video/no_face.mp4")
ITEMS = 3
MIXTURES = 48


def corpus_items(extractors: Extractors, folder: Path) -> Iterator[Sample]:
    """A few items of every corpus that is in the folder, evenly spread over it."""
    for name in LABELLED:
        if (folder / name).exists():
            corpus = read_corpus(folder / name)
            for item in corpus.items[:: max(1, len(corpus.items) // ITEMS)][:ITEMS]:
                yield sample_of(extractors, item, *extractors.rows(item, corpus)[:2])
    for pattern in CLIPS:
        for path in sorted(folder.glob(pattern))[:ITEMS]:
            yield clip_of(extractors, path)


def clip_of(extractors: Extractors, path: Path, start_s: float | None = None, end_s: float | None = None) -> Sample:
    item = CorpusItem(path.stem, audio=path, video=path, start_s=start_s, end_s=end_s)
    return sample_of(extractors, item, *extractors.rows(item)[:2])


def sample_of(extractors: Extractors, item: CorpusItem, rows: dict[str, RawRows], duration_ns: int) -> Sample:
    from mien.stream.offline.extractors import live_specs

    specs = live_specs(extractors.modalities)
    labels = Labels(id=item.id, corpus="", duration_ns=max(duration_ns, 1), still=item.image is not None)
    return Sample(labels, {name: make_track(specs[name], made) for name, made in rows.items()})


@pytest.fixture(scope="session")
def weights() -> Checkpoint:
    return load_checkpoint()


@pytest.fixture(scope="session")
def extractors(weights: Checkpoint) -> Iterator[Extractors]:
    opened = Extractors([spec.name for spec in weights.specs], asr="tiny.en")
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def samples(extractors: Extractors) -> dict[str, list[Sample]]:
    """Extracted once for all engines."""
    made = {"sample": [clip_of(extractors, SAMPLE, 8.0, 16.0)]}  # happy, then sad
    folder = os.environ.get("MIEN_CORPORA")
    if folder:
        made["corpora"] = list(corpus_items(extractors, Path(folder)))
    return made


def windows_of(samples: list[Sample], specs: tuple[ModalitySpec, ...]) -> dict[str, Array]:
    """A batch: plain windows, mixtures of several samples, and both with parts masked."""
    random = np.random.default_rng(4)
    rows: list[dict[str, tuple[Array, Array]]] = []
    for sample in samples:
        times = np.linspace(0.3, 1.0, 8 if len(samples) == 1 else 2) * sample.labels.duration_ns
        rows += [{spec.name: window(sample, spec, int(t_ns) - 1) for spec in specs} for t_ns in times]
    whole = list(rows)
    for number in range(MIXTURES):
        mixed = {spec.name: whole[random.integers(len(whole))][spec.name] for spec in specs}
        for place, spec in enumerate(specs):
            features, mask = mixed[spec.name]
            kept = (random.random(mask.shape) < random.uniform(0.2, 1.0)).astype(np.float32)
            kept *= not number >> place & 1  # every combination of modalities, none of them among these
            mixed[spec.name] = features * kept[:, None], mask * kept
        rows.append(mixed)
    batch: dict[str, Array] = {}
    for spec in specs:
        batch[f"{spec.name}.features"] = np.stack([row[spec.name][0] for row in rows])
        batch[f"{spec.name}.mask"] = np.stack([row[spec.name][1] for row in rows])
    return batch


@pytest.fixture(params=["sample", "corpora"])
def windows(
    request: pytest.FixtureRequest, weights: Checkpoint, samples: dict[str, list[Sample]]
) -> tuple[str, dict[str, Array]]:
    source: str = request.param
    if source not in samples:
        pytest.skip("needs the corpora folder in MIEN_CORPORA")
    return source, windows_of(samples[source], weights.specs)


@pytest.fixture(scope="session")
def reference(compiled: Path) -> Engine:
    return open_engine(whole_network(load_checkpoint()), "torch", cache=compiled)


@pytest.fixture(
    params=[pytest.param(each, id="-".join(each), marks=[pytest.mark.long] * (each[1] != "fp32")) for each in PAIRS]
)
def pair(request: pytest.FixtureRequest) -> tuple[str, Precision]:
    missing = find_backend(request.param[0]).missing()
    if missing:
        pytest.skip(missing)
    name, precision = request.param
    return name, precision


@cache
def _opened(pair: tuple[str, Precision], compiled: Path) -> Engine | str:
    """The engine, or why its own golden check rejects it: it is never used then."""
    try:
        return open_backend(whole_network(load_checkpoint()), find_backend(pair[0]), pair[1], 1, Cache(compiled))
    except EngineError as error:
        if pair[1] == "fp32":
            raise
        return str(error)


def infer_all(engine: Engine, inputs: dict[str, Array], rows: int) -> dict[str, Array]:
    """Infer in batches of that many windows."""
    count = len(next(iter(inputs.values())))
    parts = [
        engine.infer({name: array[first : first + rows] for name, array in inputs.items()})
        for first in range(0, count, rows)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in OUTPUTS}


def allowed(want: Array, precision: Precision) -> float:
    return FP32_TOLERANCE if precision == "fp32" else REDUCED_TOLERANCE * float(want.std())


@pytest.mark.parametrize("rows", [1, 32])
def test_outputs_match_the_reference(
    pair: tuple[str, Precision], rows: int, windows: tuple[str, dict[str, Array]], reference: Engine, compiled: Path
) -> None:
    source, inputs = windows
    engine = _opened(pair, compiled)
    if isinstance(engine, str):
        pytest.skip(engine)
    want, got = infer_all(reference, inputs, 32), infer_all(engine, inputs, rows)
    # Identical windows would show little.
    assert want["sentiment"].std() > 0.05, source
    assert set(np.flatnonzero(want["shares"].max(1) == 0)), "the window in which nothing was observed"
    for name in OUTPUTS:
        off = float(np.abs(got[name] - want[name]).max())
        assert off <= allowed(want[name], pair[1]), f"{name} of {source} is {off:.1e} off"


def test_rolling_prediction_matches_the_reference(
    pair: tuple[str, Precision], windows: tuple[str, dict[str, Array]], weights: Checkpoint, reference: Engine,
    compiled: Path,
) -> None:  # fmt: skip
    """The parts that a stream runs, one window at a time."""
    _, inputs = windows
    predictor = Predictor(weights, *pair, cache=compiled)
    if not predictor.id.endswith("-".join(pair)):
        pytest.skip(predictor.reason)
    want = infer_all(reference, inputs, 32)
    for row in range(len(want["sentiment"])):
        answer = predict_anew(
            predictor,
            Window(
                row,
                {spec.name: inputs[f"{spec.name}.features"][row] for spec in weights.specs},
                {spec.name: inputs[f"{spec.name}.mask"][row] for spec in weights.specs},
            ),
        )
        assert abs(answer.sentiment - want["sentiment"][row]) <= allowed(want["sentiment"], pair[1])
        for got, name in ((answer.emotions, "emotions"), (answer.shares, "shares")):
            off = np.abs(np.array(got) - want[name][row]).max()
            assert off <= allowed(want[name], pair[1]), name
