"""`mien eval`: the field's metrics of a checkpoint on labelled data."""

from __future__ import annotations

from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mien.cli import _options as options
from mien.cli._options import DEFAULT_ASR, choose_recogniser

if TYPE_CHECKING:
    from mien.models.data.datasets import Dataset, Sample
    from mien.models.data.pairing import Group
    from mien.models.evaluation.scores import Model, Scores


def command(
    data: Annotated[
        list[Path],
        typer.Argument(help="Corpora in any layout of `mien extract`, datasets it wrote, or MMSA pickles."),
    ],
    checkpoint: options.Checkpoint = "",
    split: Annotated[str, typer.Option(help="train, valid, test or all; default: test, else valid.")] = "",
    modalities: Annotated[str, typer.Option(help="Modalities to use, comma-separated; default: all.")] = "",
    missing: Annotated[str, typer.Option(help="Also with random steps missing, at rates such as 0:0.9.")] = "",
    stream: Annotated[bool, typer.Option("--stream", help="Also from the first 10 %, 20 % ... of each item.")] = False,
    fused: Annotated[bool, typer.Option("--fused", help="Also the fusion, on items paired by label.")] = False,
    damage: Annotated[bool, typer.Option("--damage", help="Also with noise, blur, wrong words and the like.")] = False,
    natural: Annotated[
        bool, typer.Option("--natural", help="DATA is unlabelled clips of people talking: how many are called neutral?")
    ] = False,
    baseline: Annotated[
        float, typer.Option(min=0, help="With --natural: seconds at each clip's start with the person at rest.")
    ] = 0.0,
    person: Annotated[str, typer.Option(help="With --natural: a person measured by `mien calibrate`.")] = "",
    as_json: options.Json = False,
    plots: Annotated[Path | None, typer.Option(help="Folder for confusion and calibration plots (PNG).")] = None,
    engine: Annotated[str, typer.Option(help="torch (the reference), onnx, or any other engine.")] = "torch",
    limit: Annotated[int, typer.Option(min=0, help="Maximum items per corpus and split; 0: all.")] = 0,
    asr: options.ClipAsr = "",
    jobs: Annotated[int, typer.Option(min=0, help="Processes for extraction; 0: one per core.")] = 0,
    ray: options.Ray = "",
    allow_pickle: options.AllowPickle = False,
) -> None:  # fmt: skip
    """Evaluate a checkpoint on labelled data: accuracy, error and calibration by corpus, and more on request."""
    from mien.cli._terminal import item_progress
    from mien.errors import DataError
    from mien.files import json_text, make_folder
    from mien.messages import MODALITIES
    from mien.models.checkpoint import check_extractors, load_checkpoint
    from mien.models.data.pairing import single
    from mien.models.evaluation.protocols import fusion, robustness, streaming
    from mien.models.evaluation.scores import Scores, figures, score
    from mien.models.weights import weight_set
    from mien.stream.fleet.tasks import tasks_at
    from mien.stream.offline.damage import Damaging
    from mien.stream.offline.extractors import live_specs
    from mien.stream.offline.faces import encoder_figures
    from mien.stream.offline.items import ExtractOptions
    from mien.stream.offline.labelled import read_labelled

    if plots is not None:
        make_folder(plots)  # fail early: an evaluation takes minutes
    loaded, weights = load_checkpoint(checkpoint), weight_set(checkpoint)
    known = [spec.name for spec in loaded.specs]
    names = [name for name in modalities.split(",") if name] or known
    for name in names:
        if name not in known:
            raise DataError(f"{loaded.path} has no modality {name}; it has {', '.join(known)}")
    wanted = (split,) if split in ("train", "valid", "test") else ()
    options = ExtractOptions(
        modalities=tuple(m for m in MODALITIES if m in names), splits=wanted, limit=limit,
        damaging=Damaging(table=damage),
    )  # fmt: skip
    if (baseline or person) and not natural:
        raise DataError("--baseline and --person need --natural; to leave out corpora: mien train --leave-out")
    if natural and (baseline or person):
        _resting(loaded, data, names, asr, weights, engine, baseline, person, as_json)
        return
    if natural:
        _natural(loaded, data, options, asr, weights, engine, as_json)
        return
    options = choose_recogniser(data, options, asr, jobs)
    with tasks_at(ray) if ray else nullcontext() as spread, item_progress("reading") as progress:
        dataset = read_labelled(
            data, options, allow_pickle=allow_pickle, weights=weights, jobs=jobs, progress=progress, spread=spread
        )
    check_extractors(loaded, [spec for name, spec in dataset.specs.items() if name in names])
    model = _model(loaded, engine)
    report: dict[str, Any] = {
        "checkpoint": loaded.id,
        "engine": engine,
        "modalities": names,
        "gate_names": known,
        "corpora": {},
    }
    everything: list[Sample] = []
    judged: list[tuple[list[Group], Scores]] = []
    for corpus in sorted({s.labels.corpus for s in dataset.samples}):
        part, samples = _samples(dataset, corpus, split, names)
        if not samples:
            continue
        everything += samples
        groups = [single(sample, names) for sample in samples]
        judged.append((groups, score(model, groups, names)))
        made = {"split": part, **figures(*judged[-1])}
        if "vision" in names and live_specs(["vision"], weights)["vision"] == dataset.specs.get("vision"):
            made["face_encoder"] = encoder_figures(samples, weights.face)
        if missing:
            made["missing"] = robustness(model, groups, names, _rates(missing))
        if stream:
            encode = _text_encoder(loaded, weights) if "text" in names else None
            with item_progress(f"streaming {corpus}") as progress:
                made["stream"] = streaming(model, samples, names, encode, progress)
        report["corpora"][corpus] = made
    if not everything:
        raise DataError("nothing to evaluate: that split has no labelled items of these modalities")
    if len(judged) > 1:
        report["together"] = figures(
            [group for groups, _ in judged for group in groups], Scores.joined([scores for _, scores in judged])
        )
    if damage:
        from mien.models.evaluation.shares import damage_table

        copies = [s for s in dataset.samples if s.labels.damage is not None]
        with item_progress("damage") as progress:
            report["damage"] = damage_table(model, [*everything, *copies], names, progress=progress)
    if fused:
        scales = {name: loaded.normalisation(name) for name in names}
        report["fused"] = fusion(model, everything, names, scales)
    report["skipped"] = [{"id": s.id, "reason": s.reason} for s in dataset.skipped]
    if plots is not None:
        from mien.models.evaluation.plots import save_plots

        report["plots"] = [str(path) for path in save_plots(report, plots)]
    if as_json:
        typer.echo(json_text(report, indent=1))
    else:
        from mien.cli._evaluation import print_report

        print_report(report)


def _natural(
    checkpoint: Any, data: list[Path], options: Any, asr: str, weights: Any, engine: str, as_json: bool
) -> None:
    """Figures for people who just talk, without labels."""
    import msgspec
    from rich.console import Console

    from mien.cli._evaluation import print_natural
    from mien.cli._terminal import item_progress
    from mien.files import json_text
    from mien.models.evaluation.protocols import natural
    from mien.stream.offline.labelled import read_clips

    if asr != "none" and "text" in options.modalities:
        options = msgspec.structs.replace(options, asr=asr or DEFAULT_ASR)
    with item_progress("reading") as progress:
        samples = read_clips(data, options, weights=weights, progress=progress)
    report = {
        "checkpoint": checkpoint.id,
        "natural": natural(_model(checkpoint, engine), samples, list(options.modalities)),
    }
    if as_json:
        typer.echo(json_text(report, indent=1))
    else:
        print_natural(Console(), report["natural"])


def _resting(
    checkpoint: Any,
    data: list[Path],
    names: list[str],
    asr: str,
    weights: Any,
    engine: str,
    seconds: float,
    person: str,
    as_json: bool,
) -> None:
    """Predictions for people who just talk, with and without their rest."""
    from mien.cli._terminal import item_progress, make_console, print_rows
    from mien.engines.predictor import Predictor
    from mien.files import json_text
    from mien.models.baseline import find_person
    from mien.stream.offline.clips import clips_in
    from mien.stream.offline.extractors import Extractors
    from mien.stream.offline.resting import resting

    clips = [clip for path in data for clip in clips_in(path)]
    words = asr != "none" and "text" in names
    extractors = Extractors(names, (asr or DEFAULT_ASR) if words else "", weights=weights)
    with closing(extractors), item_progress("reading") as progress:
        made = resting(clips, Predictor(checkpoint, engine), extractors, seconds, find_person(person),
                       words=words, progress=progress)  # fmt: skip
    report = {
        name: each | {how: sum(said != "neutral" for said in each[how]) for how in ("without", "with")}
        for name, each in made.items()
    }
    if as_json:
        typer.echo(json_text({"checkpoint": checkpoint.id, "modalities": names, "said": made, "resting": report}))
        return
    columns = ("clip", ">rest of", ">seconds", ">not neutral without", ">not neutral with")
    rows = [(name, each.get("rest"), each["seconds"], each["without"], each["with"]) for name, each in report.items()]
    print_rows(make_console(), columns, rows)


def _model(checkpoint: Any, engine: str) -> Model:
    from mien.models.evaluation.scores import Model, torch_model

    if engine == "torch":
        return torch_model(checkpoint.network())
    import numpy as np

    from mien.engines.cmmsf import whole_network
    from mien.engines.selection import open_engine

    network = whole_network(checkpoint)
    opened = open_engine(network, engine)
    specs = {spec.name: spec for spec in checkpoint.specs}

    def run(features: Any, mask: Any) -> Any:
        size = len(next(iter(features.values())))
        inputs = {}
        for name in network.example:
            modality, _, what = name.partition(".")
            spec = specs[modality]
            given = (features if what == "features" else mask).get(modality)
            shape = (size, spec.steps, spec.dim) if what == "features" else (size, spec.steps)
            inputs[name] = np.zeros(shape, np.float32) if given is None else given
        outputs = opened.infer(inputs)
        return tuple(outputs[name] for name in network.outputs)

    return Model(run, specs)


def _samples(dataset: Dataset, corpus: str, split: str, names: list[str]) -> tuple[str, list[Sample]]:
    """The requested split, and its labelled samples that have any of the modalities."""
    own = [s for s in dataset.samples if s.labels.corpus == corpus and not s.labels.copy]
    splits = {s.labels.split for s in own}
    part = split or ("test" if "test" in splits else "valid" if "valid" in splits else "all")
    return part, [
        s
        for s in own
        if part in ("all", s.labels.split)
        and any(name in s.tracks for name in names)
        and (s.labels.sentiment is not None or s.labels.emotions is not None)
    ]


def _rates(missing: str) -> list[float]:
    from mien.errors import DataError

    low, _, high = missing.partition(":")
    try:
        first, last = round(float(low) * 10), round(float(high or low) * 10)
    except ValueError as error:
        raise DataError(f"--missing {missing!r} is not a range such as 0:0.9") from error
    if not 0 <= first <= last <= 10:
        raise DataError(f"--missing {missing!r} is not a range between 0 and 1 such as 0:0.9")
    return [k / 10 for k in range(first, last + 1)]


def _text_encoder(checkpoint: Any, weights: Any) -> Any:
    """Encoder for partial sentences; None if the checkpoint's word rows are not those of the live text encoder."""
    from mien.stream.offline.extractors import Extractors, live_specs

    text = next((spec for spec in checkpoint.specs if spec.name == "text"), None)
    if text is None or live_specs(["text"], weights)["text"] != text:
        return None
    return Extractors(["text"], weights=weights).text.encode
