"""Labels for stretches of a recording, in the table read by `mien extract`: `labels.csv` beside the recording.

    labels = LabelFile(Path("talk.mcap"))
    labels.add(12.0, 15.5, emotion="happy", sentiment=2.0)
    labels.stretches      # in the order of time
    labels.remove(labels.stretches[0])

One table serves all recordings of a folder. Rows of other files, unknown columns, and splits that were edited are
preserved.
"""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import msgspec

from mien.clock import NS_PER_S
from mien.errors import DataError, RecordingError
from mien.files import write_file
from mien.messages import EMOTIONS, SENTIMENT_MAX, SENTIMENT_MIN
from mien.models.data.corpora import SHARED_S
from mien.stream.recording.reader import open_recording
from mien.stream.recording.stretch import recording_end_ns, spoken_words
from mien.stream.recording.table import zero_ns_of

TABLE = "labels.csv"
COLUMNS = ("id", "file", "start", "end", "sentiment", "emotion", "text", "speaker", "split")
SHORTEST_S = 0.2
_VALID_EVERY, _VALID_AT = 5, 2  # the third of every five labels made is kept for validation


class Stretch(msgspec.Struct, frozen=True, order=True):
    """A labelled part of a recording.

    Attributes:
        start_s, end_s: seconds from the recording's zero, as in `Table.rows`.
        sentiment: -3 ... 3, or None. emotion: one of the seven, or None. At least one of them is set.
        text: what was said, as recognised; it may be corrected in the table.
    """

    start_s: float
    end_s: float
    sentiment: float | None = None
    emotion: str | None = None
    text: str = ""
    speaker: str = ""


class LabelFile:
    """The labels of one recording, which lasts `seconds`.

    Raises:
        RecordingError: it cannot be read. DataError: the file beside it is not a table of labels.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.table = path.parent / TABLE
        self._recording = open_recording(path)
        self._zero_ns = zero_ns_of(self._recording)
        self.seconds = (recording_end_ns(self._recording) - self._zero_ns) / NS_PER_S
        self._columns: list[str] = list(COLUMNS)
        self._others: list[dict[str, str]] = []
        self._stretches: list[Stretch] = []
        self._rows: dict[Stretch, dict[str, str]] = {}  # what else the table says: id, split, unknown columns
        self._read()

    @property
    def stretches(self) -> tuple[Stretch, ...]:
        """All labels of this recording, in time order."""
        return tuple(sorted(self._stretches, key=lambda s: (s.start_s, s.end_s)))

    def add(
        self,
        start_s: float,
        end_s: float,
        *,
        sentiment: float | None = None,
        emotion: str | None = None,
        speaker: str = "",
    ) -> Stretch:
        """Label a stretch, and write the table.

        Raises:
            DataError: it is too short, outside the recording, or has no valid label; or the disk is full.
        """
        start_s, end_s = max(round(start_s, 3), 0.0), min(round(end_s, 3), round(self.seconds, 3))
        if not end_s - start_s >= SHORTEST_S:
            raise DataError(f"a stretch lasts {SHORTEST_S} s at least, within the {self.seconds:.1f} s of {self.path}")
        if sentiment is None and emotion is None:
            raise DataError("a label needs a sentiment or an emotion")
        if sentiment is not None and not (math.isfinite(sentiment) and SENTIMENT_MIN <= sentiment <= SENTIMENT_MAX):
            raise DataError(f"sentiment {sentiment} is not between {SENTIMENT_MIN:g} and {SENTIMENT_MAX:g}")
        if emotion is not None and emotion not in EMOTIONS:
            raise DataError(f"emotion {emotion!r} is none of {', '.join(EMOTIONS)}")
        begin_ns = self._zero_ns + round(start_s * NS_PER_S)
        words, _ = spoken_words(self._recording, begin_ns, self._zero_ns + round(end_s * NS_PER_S))
        stretch = Stretch(start_s, end_s, sentiment, emotion, " ".join(words), speaker)
        # Chosen once: a later label must not move an item that a model was trained on into validation.
        split = "valid" if len(self._stretches) % _VALID_EVERY == _VALID_AT else "train"
        shared = [s for s in self._stretches if min(s.end_s, end_s) - max(s.start_s, start_s) > SHARED_S]
        if shared:
            split = self._rows[shared[0]].get("split") or ""
        name = f"{self.path.stem}@{start_s:.2f}"
        if any(row.get("id") == name for row in self._rows.values()):
            name += f"-{end_s:.2f}"
        self._rows[stretch] = {"id": name, "split": split}
        self._stretches.append(stretch)
        self._write()
        return stretch

    def remove(self, stretch: Stretch) -> None:
        """Remove a label, and write the table. Removing a missing one is not an error."""
        if stretch in self._stretches:
            self._stretches.remove(stretch)
            self._write()

    def _read(self) -> None:
        if not self.table.exists():
            return
        try:
            with self.table.open(encoding="utf-8-sig", newline="") as stream:
                reader = csv.DictReader(stream, strict=True)
                rows = list(reader)
                columns = list(reader.fieldnames or [])
        except (OSError, csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"cannot read {self.table}: {error}") from error
        if columns and "file" not in columns:
            raise DataError(f"{self.table} has no column `file`, so it is not a table of labels; move it elsewhere")
        self._columns += [name for name in columns if name not in self._columns]
        for number, row in enumerate(rows, 2):
            if row.get("file") != self.path.name:
                self._others.append(row)
                continue
            try:
                stretch = Stretch(
                    float(row["start"]),
                    float(row["end"]),
                    float(row["sentiment"]) if row.get("sentiment") else None,
                    row.get("emotion") or None,
                    row.get("text") or "",
                    row.get("speaker") or "",
                )
                self._stretches.append(stretch)
                self._rows[stretch] = row
            except (KeyError, ValueError, TypeError) as error:
                raise DataError(f"{self.table}, row {number}: start, end and sentiment must be numbers") from error

    def _write(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, restval="", lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(self._others)
        for stretch in self.stretches:
            writer.writerow(
                self._rows[stretch]
                | {
                    "file": self.path.name,
                    "start": f"{stretch.start_s:.3f}",
                    "end": f"{stretch.end_s:.3f}",
                    "sentiment": "" if stretch.sentiment is None else f"{stretch.sentiment:g}",
                    "emotion": stretch.emotion or "",
                    "text": stretch.text,
                    "speaker": stretch.speaker,
                }
            )
        write_file(self.table, text.getvalue(), private=True, error=RecordingError)
