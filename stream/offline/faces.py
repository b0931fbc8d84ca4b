"""Faces of corpora, cropped as in the live stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mien.errors import DataError
from mien.messages import EMOTIONS, UInt8
from mien.models.data.corpora import Corpus

if TYPE_CHECKING:
    from mien.models.data.datasets import Sample
    from mien.models.training.face import Faces

_CHUNK = 256


def labelled_faces(
    corpora: Sequence[Corpus],
    split: str,
    landmarker: Path,
    pool: Executor,
    progress: Callable[[int, int], None] | None = None,
) -> Faces:
    """All faces of a split, aligned, with their labels.

    Args:
        landmarker: MediaPipe's `face_landmarker.task`.
        progress: called with faces done and total faces.

    Raises:
        DataError: there are none.
    """
    from mien.models.training.face import Faces

    images: list[UInt8] = []
    shares: list[tuple[float, ...]] = []
    sure: list[int] = []
    own: list[int] = []
    for corpus in corpora:
        for item in corpus.split(split):
            target = item.emotion_target
            if item.image is None or target is None or corpus.images is None:
                continue
            images.append(corpus.images[item.image])
            shares.append(target)
            sure.append(_number(item.emotion))
            # Without annotators' votes the label is the corpus's own.
            own.append(_number(item.emotion if item.emotions is None else item.own_emotion))
    if not images:
        raise DataError(f"no face with an emotion is in the split `{split}`")
    chunks = [np.stack(images[k : k + _CHUNK]) for k in range(0, len(images), _CHUNK)]
    cut: list[UInt8] = []
    for part in pool.map(_cut, [landmarker] * len(chunks), chunks):
        cut.append(part)
        if progress is not None:
            progress(sum(map(len, cut)), len(images))
    return Faces(np.concatenate(cut), np.array(shares, np.float32), np.array(sure, np.int64), np.array(own, np.int64))


def encoder_figures(samples: Sequence[Sample], weights: Path) -> dict[str, Any] | None:
    """Metrics of the face encoder alone on stills, from the embeddings in their rows.

    `emotion` on labels that annotators agree on, `own_labels` by the second head on the corpus's original labels.
    None if no still has either.
    """
    import torch

    from mien.models.evaluation.metrics import emotion_metrics
    from mien.models.face import load_face
    from mien.stream.modalities.vision import EMBEDDING

    stills = [s for s in samples if s.labels.still and "vision" in s.tracks and s.tracks["vision"].mask.any()]
    if not stills:
        return None
    model = load_face(weights)
    with torch.inference_mode():
        rows = torch.from_numpy(np.stack([s.tracks["vision"].values[0, EMBEDDING] for s in stills]))
        heads = (("emotion", model.classify, [s.emotion for s in stills]),
                 ("own_labels", model.classify_own, [s.labels.own for s in stills]))  # fmt: skip
        figures: dict[str, Any] = {}
        for name, head, labels in heads:
            known = [n for n, label in enumerate(labels) if label is not None]
            if known:
                truth = np.array([labels[n] for n in known], np.int64)
                m = emotion_metrics(truth, head(rows[known]).softmax(1).numpy())
                recalls = np.diag(m.confusion) / np.maximum(m.confusion.sum(1), 1)
                figures[name] = {"uar": m.uar, "accuracy": m.accuracy, "ece": m.ece, "count": m.count,
                                 "recalls": dict(zip(EMOTIONS, recalls.tolist(), strict=True))}  # fmt: skip
    return figures or None


def _number(emotion: str | None) -> int:
    return -1 if emotion is None else EMOTIONS.index(emotion)


def _cut(landmarker: Path, images: UInt8) -> UInt8:
    from mien.stream.modalities.face_mesh import FaceMesh
    from mien.stream.modalities.face_search import find_in_still
    from mien.stream.modalities.vision import aligned_crop

    with closing(FaceMesh(landmarker, moving=False, max_faces=1)) as mesh:
        faces = [find_in_still(mesh, image) for image in images]
    return np.stack([aligned_crop(i, None if f is None else f.landmarks) for i, f in zip(images, faces, strict=True)])
