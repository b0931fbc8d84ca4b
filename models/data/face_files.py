"""Face image files: FER2013 with one label per image, and FER+ with ten annotators' votes on the same images.

FER+ has three columns outside the seven emotions. Contempt is dropped rather than counted as anger or disgust:
annotators agree on it in one image of 200. Unknown and "no face" (NF) are not emotions.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mien.errors import DataError
from mien.messages import EMOTIONS, UInt8
from mien.models.data.labels import parse_emotion

OTHER_COLUMNS = ("contempt", "unknown", "NF")
LEAST_VOTES = 4  # for the seven, without single votes; with fewer, annotators see none of them
MAJORITY = 5
Votes = npt.NDArray[np.int64]


def read_faces(path: Path) -> tuple[UInt8, tuple[str | None, ...], Votes | None]:
    """Read face images with their labels.

    The file holds `images` (n, height, width) uint8 and `labels` (n,) names, or `jpeg` (bytes of all pictures), `ends`
    (n,), `votes` (n, columns), `columns` and `labels`.

    Returns:
        images (n, height, width); the corpus's own label of each (n,), one of EMOTIONS or None; and (n, 7 + 3) votes
        for EMOTIONS and OTHER_COLUMNS, None without votes.

    Raises:
        DataError: neither, or arrays that do not match.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            names = {"jpeg", "ends", "votes", "columns"} if "votes" in file else {"images"}
            arrays = {name: np.asarray(file[name]) for name in (*names, "labels")}
    except KeyError as error:
        raise DataError(
            f"{path} needs the arrays `images` and `labels`, or as FER+ `jpeg`, `ends`, `votes`, `columns` and `labels`"
        ) from error
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as npz of plain arrays: {error}") from error
    images = arrays["images"] if "images" in arrays else _decoded(path, arrays["jpeg"], arrays["ends"])
    if images.ndim != 3 or images.dtype != np.uint8 or 0 in images.shape:
        raise DataError(f"{path}: images must be (n, height, width) uint8, none 0, not {images.shape} {images.dtype}")
    labels = arrays["labels"]
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "US":
        raise DataError(f"{path}: labels must be {len(images)} names, not {labels.shape} {labels.dtype}")
    known = {str(name): parse_emotion(str(name), str(path)) for name in np.unique(labels.astype(str))}
    own = tuple(known[str(name)] for name in labels.astype(str))
    votes = _votes(path, arrays["votes"], arrays["columns"], len(images)) if "votes" in arrays else None
    return images, own, votes


def vote(votes: Votes) -> tuple[tuple[float, ...], str | None] | str:
    """The aggregated votes of one face, or the reason why there is no result.

    Returns:
        shares of the votes for the seven, in the order of EMOTIONS, single votes left out; and the emotion that a
        majority agrees on, or None.
    """
    seven, others = votes[: len(EMOTIONS)], votes[len(EMOTIONS) :]
    if others.max() > seven.max():
        return f"most annotators say {OTHER_COLUMNS[int(others.argmax())]}"
    counted = np.where(seven > 1, seven, 0)
    if counted.sum() < LEAST_VOTES:
        return "annotators see no emotion in it"
    agreed = EMOTIONS[int(seven.argmax())] if seven.max() >= MAJORITY else None
    return tuple((counted / counted.sum()).tolist()), agreed


def _decoded(path: Path, content: npt.NDArray[np.generic], ends: npt.NDArray[np.generic]) -> UInt8:
    import cv2

    if content.ndim != 1 or content.dtype != np.uint8 or ends.ndim != 1 or ends.dtype.kind not in "iu" or not len(ends):
        raise DataError(f"{path}: `jpeg` must be bytes (m,) uint8, and `ends` whole numbers (n,)")
    starts = np.concatenate([ends[:1] * 0, ends[:-1]])  # of one type: int64 and uint64 together would be float64
    if (ends <= starts).any() or ends[-1] > len(content):
        raise DataError(f"{path}: `ends` must rise, and end within the {len(content)} bytes of `jpeg`")
    decoded = [cv2.imdecode(content[a:b], cv2.IMREAD_GRAYSCALE) for a, b in zip(starts, ends, strict=True)]
    pictures = [picture for picture in decoded if picture is not None]
    shapes = {picture.shape for picture in pictures}
    if len(shapes) != 1 or len(pictures) != len(decoded):
        raise DataError(f"{path}: `jpeg` must hold pictures of one size; it holds sizes {shapes}, or none")
    return np.asarray(np.stack(pictures), np.uint8)


def _votes(path: Path, votes: npt.NDArray[np.generic], columns: npt.NDArray[np.generic], count: int) -> Votes:
    names = [str(name) for name in columns.astype(str)] if columns.ndim == 1 else []
    if votes.shape != (count, len(names)) or votes.dtype.kind not in "iu" or not names:
        raise DataError(f"{path}: votes must be whole numbers ({count}, {len(names)}), not {votes.shape} {votes.dtype}")
    emotions = [name if name in OTHER_COLUMNS else parse_emotion(name, f"{path}, columns") for name in names]
    order = (*EMOTIONS, *OTHER_COLUMNS)
    if sorted(map(str, emotions)) != sorted(order):
        raise DataError(f"{path}: columns must be the seven emotions, {', '.join(OTHER_COLUMNS)}; not {names}")
    counts = votes[:, [emotions.index(name) for name in order]].astype(np.int64)
    if (counts < 0).any():
        raise DataError(f"{path}: votes must not be negative")
    return counts
