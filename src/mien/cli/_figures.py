"""Human-readable reports of `mien bench`: tables of durations, ratios, trials and single figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from mien.cli._terminal import cell, figure_table, make_console, print_table
from mien.stream.bench.measurement import compare_reports

_PERCENTILES = ("p50", "p90", "p95", "p99", "max")
_SPREAD = ("ratio", "p10", "p90")
_SHOWN = "faults"  # of `mien bench chaos`: each was printed when it happened


def show(report: Mapping[str, Any], console: Console | None = None) -> None:
    """Print a report of `mien bench`."""
    console = console or make_console()
    sorted_out = _Tables()
    sorted_out.take(report["results"], "")
    if sorted_out.durations:
        rows = [
            (name, *(f"{made[p]:.3f}" if p in made else None for p in _PERCENTILES), made["n"])
            for name, made in sorted_out.durations
        ]
        print_table(console, figure_table(report["kind"], (*_PERCENTILES, "n"), rows))
        console.print("milliseconds, without the warm-up", style="dim")
    if sorted_out.ratios:
        _space(console)
        rows = [(name, *(f"{made[part]:.2f}" for part in _SPREAD)) for name, made in sorted_out.ratios]
        print_table(console, figure_table("ratio, and its spread", _SPREAD, rows))
    for name, records in sorted_out.records:
        _space(console)
        columns = list(dict.fromkeys(column for _, record in records for column in record))
        rows = [(key, *(record.get(column) for column in columns)) for key, record in records]
        print_table(console, figure_table(name, columns, rows))
    if sorted_out.single:
        _space(console)
        for name, value in sorted_out.single:
            console.print(f"{name}: {cell(value)}", soft_wrap=True)
    _show_surroundings(report, console)


def show_comparison(base: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Ratios of two reports: how many times as long the second takes."""
    console = make_console()
    ratios = compare_reports(base["results"], other["results"])
    rows = []
    for path, figures in ratios.items():
        verdict = "slower" if figures["p10"] > 1 else "faster" if figures["p90"] < 1 else "no difference shown"
        rows.append((path, *(f"{figures[name]:.3f}" for name in _SPREAD), verdict))
    if rows:
        print_table(console, figure_table("second / first", (*_SPREAD, ""), rows))
    else:
        console.print("the two reports have no measurement in common")
    if base["machine"] != other["machine"]:
        console.print("the reports are from different machines", style="yellow")


@dataclass
class _Tables:
    """The results of a report, grouped by presentation; each name is the path to the figure."""

    durations: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    ratios: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    records: list[tuple[str, list[tuple[str, dict[str, Any]]]]] = field(default_factory=list)
    single: list[tuple[str, Any]] = field(default_factory=list)

    def take(self, results: Mapping[str, Any], path: str) -> None:
        """Group results, in the report's order."""
        for key, value in results.items():
            name = f"{path} {key}".strip()
            if key == _SHOWN:
                continue
            if _is_duration(value):
                self.durations.append((name, value))
            elif _is_ratio(value):
                self.ratios.append((name, value))
            elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
                self.records.append((name, [(str(n + 1), _flat(item)) for n, item in enumerate(value)]))
            elif isinstance(value, dict) and _are_alike(value.values()):
                self.records.append((name, [(key, _flat(item)) for key, item in value.items()]))
            elif isinstance(value, dict) and value:
                self.take(value, name)
            else:
                self.single.append((name, value))


def _is_duration(value: Any) -> bool:
    """Whether `mien.stream.bench.measurement.describe` made it; without durations it has only their number."""
    return isinstance(value, dict) and ("blocks" in value or value == {"n": 0})


def _is_ratio(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == set(_SPREAD)


def _are_alike(values: Iterable[Any]) -> bool:
    """Whether these are records with the same fields, such as CPU time and memory of each process."""
    records = [
        value for value in values if isinstance(value, dict) and not _is_duration(value) and not _is_ratio(value)
    ]
    return len(records) > 0 and len(records) == len(list(values)) and all(set(r) == set(records[0]) for r in records)


def _flat(record: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """The columns of a record: median and tail of durations; nested records are flattened."""
    columns: dict[str, Any] = {}
    for key, value in record.items():
        name = f"{path} {key}".strip()
        if _is_duration(value):
            columns |= {f"{name} {p}": f"{value[p]:.2f}" if p in value else None for p in ("p50", "p99")}
        elif isinstance(value, dict) and value:
            columns |= _flat(value, name)
        else:
            columns[name] = value
    return columns


def _show_surroundings(report: Mapping[str, Any], console: Console) -> None:
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    load = report["load_per_core"]
    console.print(f"\n{report['machine']}; Python {report['python']}; {versions}", soft_wrap=True)
    console.print(f"commit {report['commit']}; load per core {load['before']} -> {load['after']}", soft_wrap=True)
    if (load["before"] or 0) > 0.5:
        console.print("the machine was busy with other work: trust ratios within a run, not times", style="yellow")


def _space(console: Console) -> None:
    console.print()
