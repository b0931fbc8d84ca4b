"""Looking into a recording at any moment: what a page that scrubs through it needs."""

from __future__ import annotations

import io
import wave
from pathlib import Path

from mien.clock import NS_PER_MS, NS_PER_S
from mien.stream.bus.preview import Preview
from mien.stream.recording import channels
from mien.stream.recording.reader import open_recording
from mien.stream.recording.table import Table, read_table

_LATE_NS = 3 * NS_PER_S  # a picture is written down so long after it was captured, at most
_NEAR_NS = 500 * NS_PER_MS


class Scrubber:
    """A recording, opened for looking.

    Args:
        path: of the recording.

    Attributes:
        table: all predictions and words, with `t_s` from the recording's zero.
        has_pictures, has_sound: whether it was recorded with them.

    Raises:
        RecordingError: it cannot be read, or holds no predictions.
    """

    def __init__(self, path: Path) -> None:
        self._recording = open_recording(path)
        self.table: Table = read_table(path)
        self.has_pictures = channels.VIDEO in self._recording.channels
        self.has_sound = channels.AUDIO in self._recording.channels

    def picture_at(self, t_s: float) -> Preview | None:
        """The picture nearest to a moment, within half a second of it."""
        t_ns = self.table.zero_ns + round(t_s * NS_PER_S)
        best: Preview | None = None
        near_ns = _NEAR_NS
        for entry in self._recording.entries({channels.VIDEO}, since_ns=t_ns - _NEAR_NS, until_ns=t_ns + _LATE_NS):
            if abs(entry.publish_ns - t_ns) <= near_ns:
                near_ns, best = abs(entry.publish_ns - t_ns), entry.preview()
            elif entry.publish_ns > t_ns:
                break
        return best

    def sound_between(self, start_s: float, end_s: float) -> bytes | None:
        """A stretch of sound as a WAV file; None if there is none."""
        start_ns, end_ns = (self.table.zero_ns + round(t_s * NS_PER_S) for t_s in (start_s, end_s))
        pieces: list[bytes] = []
        rate_hz = 0
        for entry in self._recording.entries({channels.AUDIO}, since_ns=start_ns, until_ns=end_ns + _LATE_NS):
            sound = entry.sound()
            rate_hz = sound.rate_hz
            first = max(0, -(-(start_ns - sound.t_start_ns) * rate_hz // NS_PER_S))
            last = min(len(sound.pcm) // 2, (end_ns - sound.t_start_ns) * rate_hz // NS_PER_S)
            if last > first:
                pieces.append(sound.pcm[2 * first : 2 * last])
        if not pieces:
            return None
        out = io.BytesIO()
        with wave.open(out, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(rate_hz)
            file.writeframes(b"".join(pieces))
        return out.getvalue()
