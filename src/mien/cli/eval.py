"""`mien eval`: the field's metrics of a checkpoint on labelled data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mien.cli import _cluster, _recogniser
from mien.cli import _options as options

if TYPE_CHECKING:
    from mien.models.data.datasets import Dataset, Sample
    from mien.models.data.pairing import Group
    from mien.models.evaluation.scores import Runner, Scores

# Published Has0 / Non0 Acc-2 on the standard test splits, for orientation.
PUBLISHED = {
    "mosi": (
        ("Self-MM", "0.8400", "0.8600"),
        ("MMML", "0.8590", "0.8820"),
        ("CM-MSF (protocol not stated)", "0.8910", ""),
        ("BERT, text alone", "0.8280", "0.8490"),
    ),
    "mosei": (
        ("Self-MM", "0.8280", "0.8520"),
        ("MMML", "0.8630", "0.8670"),
        ("CM-MSF (protocol not stated)", "0.8860", ""),
    ),
}
_SENTIMENT = ("has0_accuracy", "non0_accuracy", "has0_f1", "non0_f1", "accuracy7", "accuracy5", "mae", "correlation")


def command(
    data: Annotated[
        list[Path],
        typer.Argument(help="Corpora in any layout of `mien extract`, datasets it wrote, or MMSA pickles."),
    ],
    checkpoint: options.Checkpoint = "",
    split: Annotated[str, typer.Option(help="train, valid, test or all; test if there is one, else valid.")] = "",
    modalities: Annotated[str, typer.Option(help="Modalities to use; the others count as missing.")] = "",
    missing: Annotated[str, typer.Option(help="Rates of random missing steps, for instance 0:0.9.")] = "",
    stream: Annotated[bool, typer.Option("--stream", help="With the first 10 %, 20 % ... of each item seen.")] = False,
    fused: Annotated[bool, typer.Option("--fused", help="Items of several corpora, paired by label.")] = False,
    damage: Annotated[bool, typer.Option("--damage", help="Each modality under noise, blur, wrong words ...")] = False,
    natural: Annotated[
        bool, typer.Option("--natural", help="DATA is clips of people who just talk, or folders of them.")
    ] = False,
    baseline: Annotated[
        float, typer.Option(min=0, help="With --natural: the first seconds of each clip are its person's rest.")
    ] = 0.0,
    person: Annotated[str, typer.Option(help="With --natural: a person that `mien calibrate` measured.")] = "",
    as_json: options.Json = False,
    plots: Annotated[Path | None, typer.Option(help="Folder for confusion and calibration plots (PNG).")] = None,
    engine: Annotated[str, typer.Option(help="torch (the reference), onnx, or any other engine.")] = "torch",
    limit: Annotated[int, typer.Option(min=0, help="Items per corpus and split that are extracted; 0 takes all.")] = 0,
    asr: options.ClipAsr = "",
    jobs: Annotated[int, typer.Option(min=0, help="Processes for extraction; 0 is one per core.")] = 0,
    ray: options.Ray = "",
    allow_pickle: options.AllowPickle = False,
) -> None:  # fmt: skip
    """Measure a checkpoint on labelled data."""
    import json

    from mien.cli._progress import item_progress
    from mien.errors import DataError
    from mien.messages import MODALITIES
    from mien.models.checkpoint import check_extractors, load_checkpoint
    from mien.models.data.pairing import single
    from mien.models.evaluation.protocols import fusion, robustness, streaming
    from mien.models.evaluation.scores import Scores, figures, score
    from mien.models.weights import weight_set
    from mien.stream.offline.damage import Damaging
    from mien.stream.offline.extractors import live_specs
    from mien.stream.offline.faces import encoder_figures
    from mien.stream.offline.items import ExtractOptions
    from mien.stream.offline.labelled import read_labelled

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
        raise DataError("--baseline and --person go with --natural; corpora left out: mien train --leave-out")
    if natural and (baseline or person):
        from mien.cli._resting import print_resting

        print_resting(loaded, data, names, asr, weights, engine, baseline, person, as_json)
        return
    if natural:
        _natural(loaded, data, options, asr, weights, engine, as_json)
        return
    options = _recogniser.choose_recogniser(data, options, asr, jobs)
    with _cluster.spread_at(ray) as spread, item_progress("reading") as progress:
        dataset = read_labelled(
            data, options, allow_pickle=allow_pickle, weights=weights, jobs=jobs, progress=progress, spread=spread
        )
    check_extractors(loaded, [spec for name, spec in dataset.specs.items() if name in names])
    run = _runner(loaded, engine)
    specs = {spec.name: spec for spec in loaded.specs}
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
        judged.append((groups, score(run, specs, groups, names)))
        made = {"split": part, **figures(*judged[-1])}
        if "vision" in names and live_specs(["vision"], weights)["vision"] == dataset.specs.get("vision"):
            made["face_encoder"] = encoder_figures(samples, weights.face)
        if missing:
            made["missing"] = robustness(run, specs, groups, names, _rates(missing))
        if stream:
            encode = _text_encoder(loaded, weights) if "text" in names else None
            with item_progress(f"streaming {corpus}") as progress:
                made["stream"] = streaming(run, specs, samples, names, encode, progress)
        report["corpora"][corpus] = made
    if not everything:
        raise DataError("nothing to measure: no labelled item of these modalities is in that split")
    if len(judged) > 1:
        report["together"] = figures(
            [group for groups, _ in judged for group in groups], Scores.joined([scores for _, scores in judged])
        )
    if damage:
        from mien.models.evaluation.shares import damage_table

        copies = [s for s in dataset.samples if s.labels.damage is not None]
        with item_progress("damage") as progress:
            report["damage"] = damage_table(run, specs, [*everything, *copies], names, progress=progress)
    if fused:
        scales = {name: loaded.normalisation(name) for name in names}
        report["fused"] = fusion(run, specs, everything, names, scales)
    report["skipped"] = [{"id": s.id, "reason": s.reason} for s in dataset.skipped]
    if plots is not None:
        from mien.models.evaluation.plots import save_plots

        report["plots"] = [str(path) for path in save_plots(report, plots)]
    if as_json:
        typer.echo(json.dumps(report, indent=1))
    else:
        _print(report)


def _natural(
    checkpoint: Any, data: list[Path], options: Any, asr: str, weights: Any, engine: str, as_json: bool
) -> None:
    """What is said of people who just talk; nothing of it needs a label."""
    import json

    import msgspec
    from rich.console import Console

    from mien.cli._progress import item_progress
    from mien.cli._trust import print_natural
    from mien.models.evaluation.natural import natural
    from mien.stream.offline.footage import read_clips

    if asr != "none" and "text" in options.modalities:
        options = msgspec.structs.replace(options, asr=asr or _recogniser.DEFAULT)
    specs = {spec.name: spec for spec in checkpoint.specs}
    with item_progress("reading") as progress:
        samples = read_clips(data, options, weights=weights, progress=progress)
    report = {
        "checkpoint": checkpoint.id,
        "natural": natural(_runner(checkpoint, engine), specs, samples, list(options.modalities)),
    }
    if as_json:
        typer.echo(json.dumps(report, indent=1))
    else:
        print_natural(Console(), report["natural"])


def _runner(checkpoint: Any, engine: str) -> Runner:
    if engine == "torch":
        from mien.models.evaluation.scores import torch_runner

        return torch_runner(checkpoint.network())
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

    return run


def _samples(dataset: Dataset, corpus: str, split: str, names: list[str]) -> tuple[str, list[Sample]]:
    """The split that is meant, and its labelled samples that have any of the modalities."""
    ours = [s for s in dataset.samples if s.labels.corpus == corpus and not s.labels.copy]
    splits = {s.labels.split for s in ours}
    part = split or ("test" if "test" in splits else "valid" if "valid" in splits else "all")
    return part, [
        s
        for s in ours
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
    """What encodes parts of sentences; None where the checkpoint's words are not those of the live text encoder."""
    from mien.stream.offline.extractors import Extractors, live_specs

    text = next((spec for spec in checkpoint.specs if spec.name == "text"), None)
    if text is None or live_specs(["text"], weights)["text"] != text:
        return None
    return Extractors(["text"], weights=weights).text.encode


def _print(report: dict[str, Any]) -> None:
    from rich.table import Table

    from mien.cli._terminal import make_console, print_table
    from mien.models.evaluation.plots import present_classes

    console = make_console()
    console.print(f"{report['checkpoint']} on {report['engine']}, looking at {', '.join(report['modalities'])}")
    for corpus, made in report["corpora"].items():
        title = f"{corpus}, {made['split']}, {made['count']} items"
        if "sentiment" in made:
            table = Table(title=title, title_justify="left")
            for column in ("", "Has0 Acc-2", "Non0 Acc-2", "Has0 F1", "Non0 F1", "Acc-7", "Acc-5", "MAE", "r"):
                table.add_column(column, justify="left" if not column else "right")
            m = made["sentiment"]
            table.add_row("mien", *(f"{m[key]:.4f}" for key in _SENTIMENT))
            if made["split"] == "test":
                for name, has0, non0 in PUBLISHED.get(corpus, ()):
                    table.add_row(f"{name}, published", has0, non0)
            print_table(console, table)
        if "own_labels" in made:
            m = made["own_labels"]
            console.print(f"the corpus's own labels: UAR {m['uar']:.4f}  accuracy {m['accuracy']:.4f}")
        for what, m in (made.get("face_encoder") or {}).items():
            truth = "" if what == "emotion" else ", the corpus's own labels"
            recalls = "  ".join(f"{name} {recall:.3f}" for name, recall in m["recalls"].items())
            console.print(f"face encoder alone{truth}: UAR {m['uar']:.4f}  accuracy {m['accuracy']:.4f}  {recalls}")
        if "emotion" in made:
            m = made["emotion"]
            console.print(
                f"{title}: UAR {m['uar']:.4f}  accuracy {m['accuracy']:.4f}  weighted F1 {m['weighted_f1']:.4f}  "
                f"ECE {m['ece']:.4f} ({m['ece_by_chance']:.4f} by chance)  confidence {made['confidence']:.4f}"
            )
            table = Table("truth \\ said", *m["labels"], title="confusion", title_justify="left")
            for name, row in zip(*present_classes(m), strict=True):
                table.add_row(name, *map(str, row))
            print_table(console, table)
            curve = "  ".join(f"{b['confidence']:.2f}: {b['accuracy']:.2f}" for b in made["confidence_curve"])
            console.print(f"confidence: accuracy   {curve}")
        gates = zip(report["gate_names"], made["gates"], strict=True)
        console.print("gates " + "  ".join(f"{name} {share:.3f}" for name, share in gates))
        if "missing" in made:
            console.print(f"mean over missing rates: {made['missing']['mean']}")
        if "stream" in made:
            _print_stream(console, made["stream"])
    if "emotion" in report.get("together", {}):
        m = report["together"]["emotion"]
        console.print(f"all {m['count']} items with an emotion: accuracy {m['accuracy']:.4f}  ECE {m['ece']:.4f}")
    if "damage" in report:
        from mien.cli._trust import print_damage

        print_damage(console, report["damage"])
    if "fused" in report:
        _print_fused(console, report["fused"])
    if report["skipped"]:
        by_reason: dict[str, list[str]] = {}
        for left_out in report["skipped"]:
            by_reason.setdefault(left_out["reason"], []).append(left_out["id"])
        for reason, ids in by_reason.items():
            console.print(f"skipped {len(ids)}, {reason}: " + ", ".join(ids[:3]) + (" ..." if len(ids) > 3 else ""))
    for path in report.get("plots", ()):
        console.print(f"plot {path}")


def _print_stream(console: Any, made: dict[str, Any]) -> None:
    from rich.table import Table

    from mien.cli._terminal import print_table

    table = Table("seen", "Has0 Acc-2", "Non0 Acc-2", "MAE", "UAR", "accuracy", "confidence", title="streaming")
    for share, m in made["shares"].items():
        s, e = m.get("sentiment", {}), m.get("emotion", {})
        cells = [
            s.get("has0_accuracy"),
            s.get("non0_accuracy"),
            s.get("mae"),
            e.get("uar"),
            e.get("accuracy"),
            m["confidence"],
        ]
        table.add_row(share, *("" if cell is None else f"{cell:.4f}" for cell in cells))
    print_table(console, table)
    console.print(
        f"sign flips per minute {made['sign_flips_per_minute']:.2f}, "
        f"final sign after {made['seconds_to_final_sign']:.2f} s ({made['share_to_final_sign']:.0%} of the item)"
    )
    if made["largest_sentiment_of_neutral"]:
        n = made["largest_sentiment_of_neutral"]
        console.print(
            f"largest |sentiment| of neutral items: mean {n['mean']:.3f}, 95 % below {n['p95']:.3f}, "
            f"within half a point {n['within_half_a_point']:.1%}"
        )


def _print_fused(console: Any, made: dict[str, Any]) -> None:
    from rich.table import Table

    from mien.cli._terminal import print_table
    from mien.cli._trust import print_shares

    table = Table(
        "modalities", "UAR", "accuracy", "ECE", "by chance", "confidence",
        title=f"paired by label, {made['count']} groups",
    )  # fmt: skip
    noisy = {f"{name} is noise": m for name, m in made["noise"].items()}
    for name, m in (made["subsets"] | noisy).items():
        table.add_row(name, *(f"{m[k]:.4f}" for k in ("uar", "accuracy", "ece", "ece_by_chance", "confidence")))
    print_table(console, table)
    print_shares(console, made["shares"])
    console.print(f"gain over the best single modality {made['gain_over_best_single']:+.4f}")
    for what in ("without_one_over_best_remaining", "noise_in_one_over_best_remaining"):
        console.print(f"{what.replace('_', ' ')}: " + "  ".join(f"{m} {d:+.4f}" for m, d in made[what].items()))
    for m, c in made["conflict"].items():
        gates = " ".join(f"{g:.3f}" for g in c["gates"])
        console.print(
            f"{m} against the others: follows the others {c['follows_the_others']:.3f}, "
            f"{m} {c['follows_the_odd_one']:.3f}, confidence {c['confidence']:.3f}, gates {gates}"
        )
