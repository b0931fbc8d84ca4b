"""One time line for all streams of a file, whatever its stamps do.

A file that was put together from several (`cat a.ts b.ts`), a recorder that was restarted, or a broadcast that was cut
has stamps that start again or jump ahead. What follows such a break goes on where the file was before, by the same
shift for picture and sound, so that they stay together. A stretch without picture while there is sound is no break,
and neither is one without either that is shorter than JUMP_NS.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from mien.clock import NS_PER_MS, NS_PER_S

BACK_NS = 500 * NS_PER_MS  # a stamp that falls by more begins to count anew; by less, it is out of order
JUMP_NS = 10 * NS_PER_S  # a stamp further ahead of everything else in the file is no pause
_LONGEST_NS = NS_PER_S  # of a packet, for where the next one belongs: headers may say anything


class Stamp(NamedTuple):
    """When a packet is decoded, how long it lasts, and how much later it is shown, in ns.

    The first counts from the file's start; None where the packet does not say.
    """

    stream: int
    t_ns: int | None
    duration_ns: int = 0
    shown_ns: int = 0


@dataclass
class Timeline:
    """The breaks in a file's time.

    Attributes:
        breaks: per stream, (number of the packet, shift in ns from there on), rising. Empty where time is unbroken.
        end_ns: when all is over.
    """

    breaks: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    end_ns: int = 0


@dataclass
class _Line:
    """One stream: how far it has come."""

    segment: int = 0
    count: int = 0
    last_ns: int | None = None
    next_ns: int = 0  # where its next packet belongs
    breaks: list[tuple[int, int]] = field(default_factory=list)  # (number of the packet, segment)


def trace(stamps: Iterable[Stamp]) -> Timeline:
    """Find the breaks in the stamps of a file's packets, in the order in which they stand there."""
    lines: dict[int, _Line] = {}
    shifts = [0]  # of each segment
    raw_ns = [0]  # newest stamp of each segment, as it stands in the file
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
                # The other stream was shifted by less: neither may overlap what was before.
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
    return Timeline(breaks, max(end + shift for end, shift in zip(ends_ns, shifts, strict=True)))


def _continued(stamp_ns: int, place_ns: int, shifts: list[int]) -> int | None:
    """The newest segment in which a stamp stands where it belongs."""
    fitting = (n for n in range(len(shifts) - 1, -1, -1) if abs(stamp_ns + shifts[n] - place_ns) < BACK_NS)
    return next(fitting, None)


def _begun(stamp_ns: int, now: int, raw_ns: list[int]) -> int:
    """The segment that another stream has just begun with such stamps, else the number of a new one."""
    near = (n for n in range(len(raw_ns) - 1, now, -1) if abs(stamp_ns - raw_ns[n]) < JUMP_NS)
    return next(near, len(raw_ns))
