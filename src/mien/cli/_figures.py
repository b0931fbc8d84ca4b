"""Human-readable reports of `mien bench`: tables of durations, ratios, trials and single figures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.console import Console

from mien.cli._terminal import cell, make_console, print_rows
from mien.stream.bench.measurement import compare_reports

_PERCENTILES = ("p50", "p90", "p95", "p99", "max")
_SPREAD = ("ratio", "p10", "p90")
_SHOWN = "faults"  # of `mien bench chaos`: each was printed when it happened


def show(report: Mapping[str, Any], console: Console | None = None) -> None:
    """Print a report of `mien bench`."""
    console = console or make_console()
    durations: list[tuple[Any, ...]] = []
    ratios: list[tuple[Any, ...]] = []
    records: list[tuple[str, dict[str, Any]]] = []
    single: list[tuple[str, Any]] = []
    for name, value in _figures(report["results"]):
        if _is_duration(value):
            durations.append((name, *(f"{value[p]:.3f}" if p in value else None for p in _PERCENTILES), value["n"]))
        elif _is_ratio(value):
            ratios.append((name, *(f"{value[part]:.2f}" for part in _SPREAD)))
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            records.append((name, {str(number): _flat(item) for number, item in enumerate(value, 1)}))
        elif isinstance(value, dict) and value:
            records.append((name, {key: _flat(item) for key, item in value.items()}))
        else:
            single.append((name, value))
    if durations:
        print_rows(console, (report["kind"], *map(">{}".format, _PERCENTILES), ">n"), durations)
        console.print("milliseconds, without the warm-up", style="dim")
    if ratios:
        console.print()
        print_rows(console, ("ratio, and its spread", *map(">{}".format, _SPREAD)), ratios)
    for name, alike in records:
        console.print()
        columns = list(dict.fromkeys(column for record in alike.values() for column in record))
        rows = [(key, *map(record.get, columns)) for key, record in alike.items()]
        print_rows(console, (name, *map(">{}".format, columns)), rows)
    if single:
        console.print()
        for name, value in single:
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
        print_rows(console, ("second / first", *map(">{}".format, _SPREAD), ">"), rows)
    else:
        console.print("the two reports have no measurement in common")
    if base["machine"] != other["machine"]:
        console.print("the reports are from different machines", style="yellow")


def _figures(results: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """The figures of a report in its order, each with the path to it; records of the same fields stay together."""
    for key, value in results.items():
        name = f"{path} {key}".strip()
        together = _is_duration(value) or _is_ratio(value) or (isinstance(value, dict) and _are_alike(value.values()))
        if isinstance(value, dict) and value and not together and key != _SHOWN:
            yield from _figures(value, name)
        elif key != _SHOWN:
            yield name, value


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
