"""Tables of labels, and parsers of their fields: permitted values, and their mapping to our labels.

Every parser takes `where` ("file, row 12") for its errors, and raises `DataError` for an invalid value.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from mien.errors import DataError, suggestion
from mien.messages import EMOTIONS, SENTIMENT_MAX, SENTIMENT_MIN

SPLITS = ("train", "valid", "test")
_OTHER_SPLITS = {"dev": "valid", "val": "valid", "validation": "valid"}

# Other names of the seven emotions. Acted calm and boredom sound like a neutral state.
SYNONYMS = {
    "anger": "angry", "happiness": "happy", "joy": "happy", "sadness": "sad", "fearful": "fear",
    "disgusted": "disgust", "surprised": "surprise", "calm": "neutral", "boredom": "neutral", "bored": "neutral",
}  # fmt: skip

# GoEmotions' 27 categories, grouped as in the paper (Demszky et al., ACL 2020).
GOEMOTIONS = {
    "neutral": ("neutral",),
    "happy": ("admiration", "amusement", "approval", "caring", "desire", "excitement", "gratitude", "joy",
              "love", "optimism", "pride", "relief"),
    "sad": ("sadness", "disappointment", "embarrassment", "grief", "remorse"),
    "angry": ("anger", "annoyance", "disapproval"),
    "fear": ("fear", "nervousness"),
    "disgust": ("disgust",),
    "surprise": ("surprise", "realization", "confusion", "curiosity"),
}  # fmt: skip
_GOEMOTIONS_TO_SEVEN = {fine: coarse for coarse, names in GOEMOTIONS.items() for fine in names}

# MELD's three sentiment classes give a sign without a strength; 1 is the usual strength on the MOSEI scale.
MELD_SENTIMENT = {"negative": -1.0, "neutral": 0.0, "positive": 1.0}


class Skipped(msgspec.Struct, frozen=True):
    """An item that could not be used, and why."""

    id: str
    reason: str


class EmptyItemError(Exception):
    """An item with nothing to learn from, with the reason. Readers skip and list it."""


def _named(field: str, known: Sequence[str], synonyms: Mapping[str, str]) -> str | None:
    """The known name that a field means, "" for an empty field, None for an unknown one."""
    name = field.strip().lower()
    name = synonyms.get(name, name)
    return name if not name or name in known else None


def parse_split(name: str, where: str) -> str | None:
    """One of SPLITS, or None for an empty field."""
    split = _named(name, SPLITS, _OTHER_SPLITS)
    if split is None:
        raise DataError(f"{where}: split {name.strip().lower()!r} is none of {', '.join(SPLITS)}")
    return split or None


def split_of_name(path: Path) -> str | None:
    """The split that a file's name ends with, as in `meld_test.csv`."""
    part = re.split(r"[_.\-]", path.stem.lower())[-1]
    return _named(part, SPLITS, _OTHER_SPLITS) or None


def _number(field: str, what: str, where: str) -> float | None:
    if not field.strip():
        return None
    try:
        value = float(field)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: {what} {field!r} is not a number")
    return value


def parse_sentiment(field: str, where: str) -> float | None:
    """-3 ... 3, or None for an empty field."""
    value = _number(field, "sentiment", where)
    if value is not None and not SENTIMENT_MIN <= value <= SENTIMENT_MAX:
        raise DataError(f"{where}: sentiment {value:g} is outside {SENTIMENT_MIN:g} ... {SENTIMENT_MAX:g}")
    return value


def parse_segment(row: dict[str, str], where: str) -> tuple[float | None, float | None]:
    """Start and end in seconds, from the columns `start` and `end`."""
    start_s, end_s = _number(row.get("start", ""), "start", where), _number(row.get("end", ""), "end", where)
    if start_s is not None:
        start_s = max(start_s, 0.0)  # MOSEI has segments that start slightly before their file
    if end_s is not None and end_s <= (start_s or 0.0):
        raise EmptyItemError("zero duration")
    return start_s, end_s


def parse_emotion(field: str, where: str) -> str | None:
    """One of EMOTIONS, or None for an empty field."""
    emotion = _named(field, EMOTIONS, SYNONYMS)
    if emotion is None:
        raise DataError(
            f"{where}: unknown emotion {field!r}; {suggestion(field.strip().lower(), [*EMOTIONS, *SYNONYMS])}"
        )
    return emotion or None


def parse_goemotions(field: str, where: str) -> tuple[str | None, tuple[float, ...] | None]:
    """Labels joined by "|" to one emotion or, if raters chose several, to a soft label."""
    names = [name.strip().lower() for name in field.split("|") if name.strip()]
    if not names:
        raise EmptyItemError("no label")
    for name in names:
        if name not in _GOEMOTIONS_TO_SEVEN:
            raise DataError(f"{where}: unknown emotion {name!r}; {suggestion(name, sorted(_GOEMOTIONS_TO_SEVEN))}")
    seven = [_GOEMOTIONS_TO_SEVEN[name] for name in names]
    if len(set(seven)) == 1:
        return seven[0], None
    return None, tuple(seven.count(name) / len(seven) for name in EMOTIONS)


def read_rows(path: Path) -> tuple[frozenset[str], Iterator[tuple[int, dict[str, str]]]]:
    """Columns, and (row number, fields) of a CSV in UTF-8; the header is row 1.

    Raises:
        DataError: it cannot be read, or is not such a table; a row of another length, when it is reached.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            table = list(csv.reader(stream, strict=True))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a CSV in UTF-8: {error}") from error
    header = [name.strip() for name in table[0]] if table else []
    if not header or len(set(header)) != len(header):
        raise DataError(f"{path} has no header row with distinct column names")
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and separator in header[0]:
            raise DataError(f"{path} has {name} between its columns; save it with commas")

    def rows() -> Iterator[tuple[int, dict[str, str]]]:
        for number, fields in enumerate(table[1:], start=2):
            if not fields:
                continue
            if len(fields) != len(header):
                raise DataError(f"{path}, row {number}: {len(fields)} fields where the header has {len(header)}")
            yield number, dict(zip(header, fields, strict=True))

    return frozenset(header), rows()
