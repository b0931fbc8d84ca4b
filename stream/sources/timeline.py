"""A single timeline for all streams of a file, also if its timestamps jump or restart.

Concatenated files (`cat a.ts b.ts`), restarted recorders and cut broadcasts have timestamps that restart or jump
ahead. What follows such a discontinuity continues where the file was before, shifted equally for video and audio, so
that they stay in sync. A gap in the video alone is no discontinuity, and neither is a gap in both shorter than
JUMP_NS.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from mien.clock import NS_PER_MS, NS_PER_S

BACK_NS = 500 * NS_PER_MS  # a timestamp that falls by more restarts; by less, it is out of order
JUMP_NS = 10 * NS_PER_S  # a timestamp further ahead of everything else in the file is not a pause
_LONGEST_NS = NS_PER_S  # of a packet, for the next one's expected place: headers may say anything

# Discontinuities per stream: (packet number, shift in ns from there on), rising. Empty if time is continuous.
Breaks = dict[int, list[tuple[int, int]]]


class Stamp(NamedTuple):
    """When a packet is decoded, how long it lasts, and how much later it is shown, in ns.

    The first is relative to the file's start; None if the packet does not say.
    """

    stream: int
    t_ns: int | None
    duration_ns: int = 0
    shown_ns: int = 0


@dataclass
class _Line:
    """One stream, and how far it has got."""

    segment: int = 0
    count: int = 0
    last_ns: int | None = None
    next_ns: int = 0  # expected place of its next packet
    breaks: list[tuple[int, int]] = field(default_factory=list)  # (number of the packet, segment)


def trace(stamps: Iterable[Stamp]) -> tuple[Breaks, int]:
    """Find the discontinuities in a file's packet timestamps, given in file order, and the last packet's end in ns."""
    lines: dict[int, _Line] = {}
    shifts = [0]  # of each segment
    raw_ns = [0]  # newest timestamp of each segment, as in the file
    ends_ns = [0]  # the latest end in each segment, likewise
    head_ns = 0
    for stream, stamp_ns, duration_ns, shown_ns in stamps:
        line = lines.get(stream)
        if line is None:
            line = lines[stream] = _Line()
        line.count += 1
        if stamp_ns is None:
            continue
        t_ns = stamp_ns + shifts[line.segment]
        place_ns = line.next_ns if line.last_ns is not None else head_ns
        broken = t_ns > head_ns + JUMP_NS or (line.last_ns is not None and t_ns < line.last_ns - BACK_NS)
        if broken or (line.breaks and abs(t_ns - place_ns) > BACK_NS):
            segment = _continued(stamp_ns, place_ns, shifts)
            if segment is None:
                segment = _begun(stamp_ns, line.segment, raw_ns) if broken else line.segment
            if segment == len(shifts):
                shifts.append(place_ns - stamp_ns)
                raw_ns.append(stamp_ns)
                ends_ns.append(stamp_ns)
            elif (later_ns := place_ns - stamp_ns - shifts[segment]) > 0 and segment > line.segment:
                # The other stream was shifted by less: neither may overlap what came before.
                shifts[segment] += later_ns
                head_ns += later_ns
                for other in lines.values():
                    if other.segment == segment and other is not line and other.last_ns is not None:
                        other.last_ns, other.next_ns = other.last_ns + later_ns, other.next_ns + later_ns
            if segment != line.segment:
                line.segment = segment
                line.breaks.append((line.count - 1, segment))
            t_ns = stamp_ns + shifts[segment]
        raw_ns[line.segment] = stamp_ns
        ends_ns[line.segment] = max(ends_ns[line.segment], stamp_ns + shown_ns + duration_ns)
        line.last_ns = t_ns
        line.next_ns = t_ns + min(duration_ns, _LONGEST_NS)
        head_ns = max(head_ns, t_ns + duration_ns)
    breaks = {s: [(n, shifts[g]) for n, g in line.breaks] for s, line in lines.items() if line.breaks}
    return breaks, max(end + shift for end, shift in zip(ends_ns, shifts, strict=True))


def _continued(stamp_ns: int, place_ns: int, shifts: list[int]) -> int | None:
    """The newest segment that a timestamp continues."""
    fitting = (n for n in range(len(shifts) - 1, -1, -1) if abs(stamp_ns + shifts[n] - place_ns) < BACK_NS)
    return next(fitting, None)


def _begun(stamp_ns: int, now: int, raw_ns: list[int]) -> int:
    """The segment that another stream has just started with such timestamps, else the number of a new one."""
    near = (n for n in range(len(raw_ns) - 1, now, -1) if abs(stamp_ns - raw_ns[n]) < JUMP_NS)
    return next(near, len(raw_ns))
