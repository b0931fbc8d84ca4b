"""Human-readable reports of `mien eval`: the field's metrics, and how far the model can be trusted."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from mien.cli._terminal import make_console, print_table
from mien.models.evaluation.plots import present_classes
from mien.stream.offline.damage import UNIT

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


def print_report(report: dict[str, Any]) -> None:
    """All measurements, corpus by corpus."""
    console = make_console()
    console.print(f"{report['checkpoint']} on {report['engine']}, modalities: {', '.join(report['modalities'])}")
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
    table = Table("seen", "Has0 Acc-2", "Non0 Acc-2", "MAE", "UAR", "accuracy", "confidence", title="streaming")
    for share, m in made["shares"].items():
        s, e = m.get("sentiment", {}), m.get("emotion", {})
        cells = [
            *map(s.get, ("has0_accuracy", "non0_accuracy", "mae")),
            *map(e.get, ("uar", "accuracy")),
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


def print_damage(console: Any, made: dict[str, Any]) -> None:
    """Each modality alone and with the others, by kind and strength of damage."""
    for name, table in made.items():
        shown = Table(
            "damage", "", "alone", "sure", "company", "sure", "share", "conflict: followed",
            title=f"{name}, {table['items']} items", title_justify="left",
        )  # fmt: skip
        shown.add_row("none", "", *_cells(table["whole"]))
        for kind, levels in table["kinds"].items():
            for level in levels:
                shown.add_row(kind, f"{level['strength']:g} {UNIT.get(kind, '')}", *_cells(level))
        print_table(console, shown)
        if table["without"]:
            console.print(f"without {name}: accuracy {table['without']['accuracy']:.3f}")


def _cells(level: dict[str, Any]) -> list[str]:
    pairs = (level["alone"], level["company"])
    cells = [f"{part[key]:.3f}" for part in pairs for key in ("accuracy", "confidence")]
    odd = level.get("conflict")
    return [*cells, f"{level['share']:.3f}", f"{odd['follows_the_odd_one']:.3f}" if odd else ""]


def print_natural(console: Any, made: dict[str, Any]) -> None:
    """How often people who just talk are called something other than neutral."""
    shown = Table(
        "", "seconds", "neutral", "sure and wrong", "confidence", "most often else", "shares",
        title="people who just talk", title_justify="left",
    )  # fmt: skip
    for name, part in made.items():
        others = sorted(((v, k) for k, v in part["said"].items() if k != "neutral"), reverse=True)[:2]
        shown.add_row(
            name,
            str(part["seconds"]),
            f"{part['neutral']:.3f}",
            f"{part['sure_and_wrong']:.3f}",
            f"{part['confidence']:.3f}",
            ", ".join(f"{emotion} {share:.2f}" for share, emotion in others if share),
            "  ".join(f"{modality} {share:.2f}" for modality, share in part["shares"].items()),
        )
    print_table(console, shown)


def print_shares(console: Any, made: dict[str, Any]) -> None:
    """How well a modality's share predicts whether it alone is right."""
    for what, by_modality in made.items():
        parts = (f"{name} {m['auroc']:.3f}" for name, m in by_modality.items())
        console.print(f"share against being right alone (AUROC), {what}: " + "  ".join(parts))
