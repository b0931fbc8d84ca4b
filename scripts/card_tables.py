"""Prints the tables of models/weights/MODEL_CARD.md from what `mien eval` measured.

mien eval CORPORA... --split valid --fused --json > whole.json
mien eval MOSI MOSEI RAVDESS ... --split valid --stream --json > stream.json
python scripts/card_tables.py whole.json [stream.json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NAMES = {
    "mosi": "MOSI",
    "mosei": "MOSEI",
    "goemotions": "GoEmotions, text",
    "meld": "MELD, text, single utterances",
    "ravdess": "RAVDESS, voice, unseen actors",
    "emodb": "EmoDB, voice, unseen speakers",
    "fer2013": "FER2013, face",
    "ferplus": "FER+, face",
}


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table in Markdown. Numbers are given four decimals."""
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row) + " |")
    print()


def fused(report: dict[str, Any]) -> None:
    """Corpora, recalls, pairs, conflicts, confidence."""
    print(f"`{report['checkpoint']}`\n")
    corpora = {name: made for name in NAMES if (made := report["corpora"].get(name))}
    rows = []
    for name, made in corpora.items():
        if s := made.get("sentiment"):
            pairs = (f"{s[f'has0_{m}']:.4f} / {s[f'non0_{m}']:.4f}" for m in ("accuracy", "f1"))
            rows.append(
                [NAMES[name], made["count"], *pairs, s["accuracy7"], s["accuracy5"], s["mae"], s["correlation"]]
            )
    table(["text alone", "items", "Acc-2 Has0 / Non0", "F1 Has0 / Non0", "Acc-7", "Acc-5", "MAE", "r"], rows)
    emotions = {name: made["emotion"] for name, made in corpora.items() if "emotion" in made}
    table(
        ["one modality alone", "items", "UAR", "accuracy", "weighted F1", "ECE", "ECE by chance"],
        [[NAMES[n], *(e[k] for k in ("count", "uar", "accuracy", "weighted_f1", "ece", "ece_by_chance"))]
         for n, e in emotions.items()],
    )  # fmt: skip
    together = report.get("together", {}).get("emotion")
    if together:
        print(f"All {together['count']} items: accuracy {together['accuracy']:.4f}, ECE {together['ece']:.4f}.\n")
    labels = next(iter(emotions.values()))["labels"]
    recalls = [
        [name, *(f"{row[k] / sum(row):.2f}" if sum(row) else "" for k, row in enumerate(e["confusion"]))]
        for name, e in emotions.items()
    ]
    table(["recall", *labels], recalls)
    print("Accuracy from the least to the most confident fifth:\n")
    for name in emotions:
        curve = " → ".join(f"{part['accuracy']:.2f}" for part in corpora[name]["confidence_curve"])
        print(f"- {NAMES[name]}: {curve}")
    print()
    if made := report.get("fused"):
        paired(made)


def paired(made: dict[str, Any]) -> None:
    """Groups of items that were put together by their labels."""
    print(f"{made['count']} groups of never-seen items, paired by label:\n")
    subsets = [[n.replace("+", " + "), m["uar"], m["ece"], m["confidence"]] for n, m in made["subsets"].items()]
    noise = [[f"all, {n} replaced by noise", m["uar"], m["ece"], m["confidence"]] for n, m in made["noise"].items()]
    table(["modalities", "UAR", "ECE", "mean confidence"], subsets + noise)
    print(f"Gain over the best single modality: {100 * made['gain_over_best_single']:.1f} points UAR.")
    for what in ("without_one_over_best_remaining", "noise_in_one_over_best_remaining"):
        print(f"{what.replace('_', ' ')}: " + ", ".join(f"{m} {100 * d:+.1f}" for m, d in made[what].items()))
    shown = ", ".join(f"{c:.3f}" for c in made["confidence_by_modalities"].values())
    print(f"Mean confidence with one, two and three modalities: {shown}.\n")
    odd = [
        [
            name,
            f"{c['follows_the_others']:.3f}",
            f"{c['follows_the_odd_one']:.3f}",
            f"{c['confidence']:.3f}",
            " / ".join(f"{gate:.2f}" for gate in c["gates"]),
        ]
        for name, c in made["conflict"].items()
    ]
    table(["odd one out", "follows the others", "follows the odd one", "mean confidence", "gates"], odd)


def streamed(report: dict[str, Any]) -> None:
    """Figures after a tenth, two tenths ... of each item."""
    made = {name: m["stream"] for name in NAMES if (m := report["corpora"].get(name)) and "stream" in m}
    columns: list[tuple[str, str, str, str]] = []
    for name, stream in made.items():
        last = stream["shares"]["1.0"]
        if "sentiment" in last:
            columns += [(name, f"{NAMES[name]} Non0 Acc-2", "sentiment", "non0_accuracy")]
            columns += [(name, f"{NAMES[name]} MAE", "sentiment", "mae")]
        if "emotion" in last:
            columns.append((name, f"{NAMES[name].partition(',')[0]} UAR", "emotion", "uar"))
    shares = next(iter(made.values()))["shares"]
    table(
        ["seen", *(column[1] for column in columns)],
        [[f"{float(s):.0%}", *(made[n]["shares"][s][part][key] for n, _, part, key in columns)] for s in shares],
    )
    for name, stream in made.items():
        print(
            f"- {NAMES[name]}: {stream['sign_flips_per_minute']:.2f} sign flips a minute, final sign after "
            f"{stream['share_to_final_sign']:.0%} of the item"
        )
        if neutral := stream["largest_sentiment_of_neutral"]:
            print(
                f"  neutral items: largest |sentiment| {neutral['mean']:.2f} in the mean, within half a point "
                f"{neutral['within_half_a_point']:.0%}"
            )


def main() -> None:
    """`card_tables.py WHOLE [STREAM]`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("whole", type=Path, help="of `mien eval --fused --json`")
    parser.add_argument("stream", type=Path, nargs="?", help="of `mien eval --stream --json`")
    given = parser.parse_args()
    fused(json.loads(given.whole.read_text()))
    if given.stream is not None:
        streamed(json.loads(given.stream.read_text()))


if __name__ == "__main__":
    main()
