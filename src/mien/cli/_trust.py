"""Tables of `mien eval` on whether the model is to be trusted: damage, and people who just talk."""

from __future__ import annotations

from typing import Any


def print_damage(console: Any, made: dict[str, Any]) -> None:
    """Each modality alone and in company, by kind and strength of damage."""
    from rich.table import Table

    from mien.cli._terminal import print_table
    from mien.stream.offline.damage import UNIT

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
    """How often people who just talk are called something else than neutral."""
    from rich.table import Table

    from mien.cli._terminal import print_table

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
    """How well a share tells whether its modality alone is right."""
    for what, by_modality in made.items():
        parts = (f"{name} {m['auroc']:.3f}" for name, m in by_modality.items())
        console.print(f"share against being right alone (AUROC), {what}: " + "  ".join(parts))
