"""Readers of labelled corpora. Training, extraction and evaluation all see the same items.

`read_corpus` detects the layout: a CSV by its columns, a folder by its file names or its `labels.csv`, an npz by its
arrays. A problem with the whole corpus (an unknown column or label) is an error; an empty item (no text, clip or
duration) is skipped, and listed with the reason.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mien.errors import DataError, suggestion
from mien.messages import EMOTIONS
from mien.models.data.face_files import read_faces, vote
from mien.models.data.labels import (
    MELD_SENTIMENT,
    EmptyItemError,
    parse_emotion,
    parse_goemotions,
    parse_segment,
    parse_sentiment,
    parse_split,
    read_rows,
    split_of_name,
)

AUDIO_SUFFIXES = frozenset(
    {".aac", ".aif", ".aiff", ".amr", ".flac", ".m4a", ".mka", ".mp3", ".oga", ".ogg", ".opus", ".wav", ".wma"}
)
RECORDING_SUFFIX = ".mcap"  # mien's own, with the rows of the live session
VIDEO_SUFFIXES = frozenset(
    {".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts"}
    | {".webm", ".wmv"}
)
SHARED_S = 0.2  # what neighbouring parts of a clip in different splits may share
MEDIA_SUFFIXES = AUDIO_SUFFIXES | VIDEO_SUFFIXES

# Corpora that are labelled by file names, such as 03-01-05-01-02-01-12 and 03a01Fa.
_SPEECH_NAMES = {
    "ravdess": (
        re.compile(r"0[123]-\d\d-(?P<emotion>\d\d)(-\d\d){3}-(?P<speaker>\d\d)"),
        {"01": "neutral", "02": "neutral", "03": "happy", "04": "sad", "05": "angry", "06": "fear", "07": "disgust",
         "08": "surprise"},
    ),
    "emodb": (
        re.compile(r"(?P<speaker>\d\d)[a-z]\d\d(?P<emotion>[WLEAFTN])[a-z]?"),
        {"W": "angry", "L": "neutral", "E": "disgust", "A": "fear", "F": "happy", "T": "sad", "N": "neutral"},
    ),
}  # fmt: skip

# Speakers of the other splits; all others are in "train".
HELD_OUT_SPEAKERS: dict[str, dict[str, frozenset[str]]] = {
    "ravdess": {"valid": frozenset({"17", "18", "19", "20"}), "test": frozenset({"21", "22", "23", "24"})},
    "emodb": {"valid": frozenset({"13", "14"}), "test": frozenset({"15", "16"})},
}

_CSV_COLUMNS: dict[str, tuple[frozenset[str], frozenset[str]]] = {  # layout: (required, optional)
    "mosi": (frozenset({"text", "sentiment"}), frozenset({"id", "video_id", "clip_id", "start", "end", "split"})),
    "goemotions": (frozenset({"text", "labels"}), frozenset({"id", "split"})),
    "meld": (
        frozenset({"Utterance", "Emotion"}),
        frozenset({"Sr No.", "Speaker", "Sentiment", "Dialogue_ID", "Utterance_ID", "Season", "Episode",
                   "StartTime", "EndTime"}),
    ),
    "clips": (
        frozenset({"file"}),
        frozenset({"id", "text", "sentiment", "emotion", "speaker", "split", "start", "end"}),
    ),
}  # fmt: skip
# Tables of one layout, distinguished by part of the file's name.
_MOSI_LIKE = {"mosei": "mosei", "mosi": "mosi", "sst": "sst5"}


@dataclass(frozen=True, slots=True)
class CorpusItem:
    """One labelled utterance, clip or face.

    Attributes:
        split: "train", "valid", "test", or None where the layout does not say.
        image: row of `Corpus.images`.
        start_s, end_s: the segment within the file, or None for all of it.
        sentiment: -3 ... 3. emotion: one of the seven.
        emotions: a soft label in the order of EMOTIONS, summing to 1, for an item with several labels or votes;
            `emotion` is then the one that annotators agree on, or None.
        own_emotion: the corpus's own label, from before the votes.
        coarse: the sentiment is a sign without a strength.
    """

    id: str
    split: str | None = None
    speaker: str | None = None
    text: str | None = None
    audio: Path | None = None
    video: Path | None = None
    image: int | None = None
    start_s: float | None = None
    end_s: float | None = None
    sentiment: float | None = None
    emotion: str | None = None
    emotions: tuple[float, ...] | None = None
    own_emotion: str | None = None
    coarse: bool = False

    @property
    def emotion_target(self) -> tuple[float, ...] | None:
        """Probability per emotion in the order of EMOTIONS; None without an emotion label."""
        if self.emotions is None and self.emotion is not None:
            return tuple(float(name == self.emotion) for name in EMOTIONS)
        return self.emotions


@dataclass(frozen=True, eq=False)
class Corpus:
    """A corpus.

    `name` is "mosi", "mosei", "sst5", "goemotions", "meld", "ravdess", "emodb", "fer2013", "ferplus", or for a folder
    of clips with a labels.csv (`clips`) that folder's own.

    `images` is (n, height, width) uint8, for corpora of faces. `skipped` lists (id, reason).
    """

    name: str
    path: Path
    items: tuple[CorpusItem, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    images: npt.NDArray[np.uint8] | None = None
    clips: bool = False

    def split(self, name: str) -> tuple[CorpusItem, ...]:
        """The items of one split, in the order of the file."""
        return tuple(item for item in self.items if item.split == name)


def read_corpus(path: Path) -> Corpus:
    """Read a corpus of any layout that `Corpus.name` lists.

    Files called `*_train`, `*_valid` or `*_test` hold that split. RAVDESS and EmoDB are split by speaker.

    Raises:
        DataError: nothing there, an unknown layout, or a label outside its range or list.
    """
    path = Path(path)
    if path.is_dir():
        corpus = _read_clips(path) if (path / "labels.csv").is_file() else _read_speech(path)
    elif not path.exists():
        raise DataError(f"{path} does not exist; give a corpus file or folder")
    elif path.suffix.lower() == ".npz":
        corpus = _read_faces(path)
    elif path.name == "labels.csv":
        corpus = _read_clips(path.parent)
    elif path.suffix.lower() == ".csv":
        corpus = _read_text(path)
    else:
        raise DataError(f"{path} is not a corpus: expected a .csv, an .npz, or a folder of clips")
    check_splits([corpus])
    if not corpus.items:
        reasons = "; ".join(f"{n} x {why}" for why, n in Counter(why for _, why in corpus.skipped).most_common(3))
        raise DataError(f"{path} holds no usable item" + (f" ({reasons})" if reasons else ""))
    return corpus


def check_splits(corpora: Iterable[Corpus]) -> None:
    """Check that no part of a clip, and no text of a table, is in two splits: validation on trained items flatters.

    Raises:
        DataError: one is, with the clip, or the table and the text's id, and both splits.
    """
    by_clip: dict[str, list[CorpusItem]] = {}
    for corpus in corpora:
        for item in corpus.items:
            if item.split is not None:
                # Texts are known by their id, which other tables may use for other texts.
                clip = f"{corpus.path}: {item.id}" if item.audio is None else os.path.realpath(item.audio)
                by_clip.setdefault(clip, []).append(item)
    for clip, items in by_clip.items():
        reached_s: dict[str | None, float] = {}  # by split
        for item in sorted(items, key=lambda item: item.start_s or 0.0):
            begin_s, end_s = item.start_s or 0.0, inf if item.end_s is None else item.end_s
            for split, other_s in reached_s.items():
                if split != item.split and min(end_s, other_s) - begin_s > SHARED_S:
                    part = "" if begin_s == 0 and end_s == inf else f", from {begin_s:g} s on,"
                    raise DataError(f"{clip}{part} is in two splits, {split} and {item.split}; keep it in one of them")
            reached_s[item.split] = max(end_s, reached_s.get(item.split, 0.0))


def content_digest(path: Path, files: Iterable[Path] = ()) -> str:
    """SHA-256 of a file's content, or of the names and contents of all files below a folder, and of other `files`.

    Independent of paths and times: a copy has its original's digest.
    """
    below = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    whole = hashlib.sha256()
    for name, file in [*((f.relative_to(path).as_posix(), f) for f in below), *(("", f) for f in files)]:
        with file.open("rb") as content:
            whole.update(f"{name}\0".encode())
            whole.update(hashlib.file_digest(content, "sha256").digest())
    return whole.hexdigest()


def corpus_digest(corpus: Corpus) -> str:
    """`content_digest` of a corpus, with clips outside its folder."""
    folder = Path(os.path.abspath(corpus.path))
    clips = dict.fromkeys(item.audio for item in corpus.items if item.audio is not None)
    return content_digest(corpus.path, [c for c in clips if folder not in Path(os.path.abspath(c)).parents])


def _read_text(path: Path) -> Corpus:
    """MOSI, MOSEI, GoEmotions and MELD tables."""
    columns, rows = read_rows(path)
    layouts = [name for name, (required, _) in _CSV_COLUMNS.items() if required <= columns and name != "clips"]
    if not layouts:
        known = "; ".join(f"{name}: {', '.join(sorted(need))}" for name, (need, _) in _CSV_COLUMNS.items())
        raise DataError(f"{path} has columns {', '.join(sorted(columns))}, which match no known layout ({known})")
    layout = layouts[0]
    _refuse_unknown(path, layout, columns)
    name = layout
    if layout == "mosi":
        stem = path.stem.lower()
        unnamed = "mosi" if "id" in columns else "mosei"
        name = next((name for part, name in _MOSI_LIKE.items() if part in stem), unnamed)
    split = split_of_name(path)

    def parse(item_id: str, row: dict[str, str], where: str) -> CorpusItem:
        text = row["Utterance" if layout == "meld" else "text"].strip()
        if not text:
            raise EmptyItemError("empty text")
        item = CorpusItem(item_id, split=parse_split(row.get("split", ""), where) or split, text=text)
        if layout == "goemotions":
            emotion, emotions = parse_goemotions(row["labels"], where)
            return replace(item, emotion=emotion, emotions=emotions)
        if layout == "mosi":
            start_s, end_s = parse_segment(row, where)
            item = replace(item, speaker=row.get("video_id") or None, start_s=start_s, end_s=end_s,
                           sentiment=parse_sentiment(row["sentiment"], where))  # fmt: skip
        else:
            weak = row.get("Sentiment", "").strip().lower()
            if weak and weak not in MELD_SENTIMENT:
                raise DataError(f"{where}: sentiment {weak!r} is none of {', '.join(MELD_SENTIMENT)}")
            item = replace(item, speaker=row.get("Speaker") or None, emotion=parse_emotion(row["Emotion"], where),
                           sentiment=MELD_SENTIMENT.get(weak), coarse=True)  # fmt: skip
        if (item.sentiment if layout == "mosi" else item.emotion) is None:
            raise EmptyItemError("no label")
        return item

    return Corpus(name, path, *_parsed(path, rows, parse))


def _read_clips(folder: Path) -> Corpus:
    """A folder of clips with labels.csv (see _CSV_COLUMNS)."""
    table = folder / "labels.csv"
    columns, rows = read_rows(table)
    _refuse_unknown(table, "clips", columns)
    if "file" not in columns or not columns & {"sentiment", "emotion"}:
        raise DataError(f"{table} needs a column `file` and a column `sentiment` or `emotion`")

    def parse(item_id: str, row: dict[str, str], where: str) -> CorpusItem:
        clip = folder / row["file"].strip()
        suffix = clip.suffix.lower()
        sentiment = parse_sentiment(row.get("sentiment", ""), where)
        emotion = parse_emotion(row.get("emotion", ""), where)
        if sentiment is None and emotion is None:
            raise EmptyItemError("no label")
        if not clip.is_file():
            raise EmptyItemError("clip missing")
        if suffix not in MEDIA_SUFFIXES | {RECORDING_SUFFIX}:
            raise EmptyItemError(f"not a clip: {suffix or 'no suffix'}")
        start_s, end_s = parse_segment(row, where)
        return CorpusItem(
            item_id,
            split=parse_split(row.get("split", ""), where),
            speaker=row.get("speaker") or None,
            text=row.get("text", "").strip() or None,
            audio=clip,
            video=clip if suffix in VIDEO_SUFFIXES | {RECORDING_SUFFIX} else None,
            start_s=start_s,
            end_s=end_s,
            sentiment=sentiment,
            emotion=emotion,
        )

    return Corpus(folder.resolve().name or "clips", folder, *_parsed(table, rows, parse), clips=True)


def _parsed(
    path: Path,
    rows: Iterator[tuple[int, dict[str, str]]],
    parse: Callable[[str, dict[str, str], str], CorpusItem],
) -> tuple[tuple[CorpusItem, ...], tuple[tuple[str, str], ...]]:
    """Items of a table's rows, and (id, reason) of those that `parse` skips; it gets id, fields, and the place."""
    items: list[CorpusItem] = []
    skipped: list[tuple[str, str]] = []
    for line, row in rows:
        item_id = _row_id(row, line)
        try:
            items.append(parse(item_id, row, f"{path}, row {line}"))
        except EmptyItemError as skip:
            skipped.append((item_id, str(skip)))
    return tuple(items), tuple(skipped)


def _read_speech(folder: Path) -> Corpus:
    """RAVDESS or EmoDB, labelled by file name. Sub-folders (one per actor) are searched too."""
    clips = sorted(p for p in folder.rglob("*") if p.suffix.lower() in MEDIA_SUFFIXES)
    counts = {
        name: sum(pattern.fullmatch(clip.stem) is not None for clip in clips)
        for name, (pattern, _) in _SPEECH_NAMES.items()
    }
    name = max(counts, key=counts.__getitem__)
    pattern, emotions = _SPEECH_NAMES[name]
    if not counts[name]:
        held = f"{len(clips)} clips, none named as RAVDESS or EmoDB name theirs" if clips else "no clips"
        raise DataError(
            f"{folder} holds {held}; put a labels.csv next to the clips (columns: file, sentiment, emotion)"
        )
    items: list[CorpusItem] = []
    skipped: list[tuple[str, str]] = []
    for clip in clips:
        found = pattern.fullmatch(clip.stem)
        if not found or found["emotion"] not in emotions:
            skipped.append((clip.name, f"file name is not one of {name}"))
            continue
        speaker, emotion = found["speaker"], emotions[found["emotion"]]
        held_out = HELD_OUT_SPEAKERS[name]
        split = next((part for part, who in held_out.items() if speaker in who), "train")
        video = clip if clip.suffix.lower() in VIDEO_SUFFIXES else None
        items.append(CorpusItem(clip.stem, split, speaker, audio=clip, video=video, emotion=emotion))
    return Corpus(name, folder, tuple(items), tuple(skipped))


def _read_faces(path: Path) -> Corpus:
    """FER2013 and FER+ as npz (see `mien.models.data.face_files`)."""
    images, labels, votes = read_faces(path)
    split, items, skipped = split_of_name(path), list[CorpusItem](), list[tuple[str, str]]()
    for row, own in enumerate(labels):
        item = CorpusItem(f"{path.stem}_{row:05d}", split, image=row, emotion=own)
        if votes is not None:
            voted = vote(votes[row])
            if isinstance(voted, str):
                skipped.append((item.id, voted))
                continue
            shares, emotion = voted
            item = replace(item, emotion=emotion, emotions=shares, own_emotion=own)
        elif own is None:
            skipped.append((item.id, "no label"))
            continue
        items.append(item)
    name = "fer2013" if votes is None else "ferplus"
    return Corpus(name, path, tuple(items), tuple(skipped), images)


def _refuse_unknown(path: Path, layout: str, columns: Collection[str]) -> None:
    required, optional = _CSV_COLUMNS[layout]
    for column in sorted(set(columns) - required - optional):
        raise DataError(f"{path} has an unknown column `{column}`; {suggestion(column, sorted(required | optional))}")


def _row_id(row: dict[str, str], line: int) -> str:
    named = row.get("id") or row.get("file", "").strip()
    if named:
        return named
    if row.get("video_id"):
        return f"{row['video_id']}_{row.get('clip_id', line)}"
    if row.get("Dialogue_ID"):
        return f"dia{row['Dialogue_ID']}_utt{row.get('Utterance_ID', line)}"
    return f"row {line}"
