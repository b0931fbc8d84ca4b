"""State for the page: badges that are true, and figures of every process, as plain JSON."""

from __future__ import annotations

import math
import time
from typing import Any
from weakref import WeakKeyDictionary

from mien.messages import WORKER_OF, Status
from mien.stream.dashboard.collector import Collector
from mien.stream.dashboard.history import MODALITIES

SILENT_S = 2.0  # processes send a status once a second
PICTURE_S = 2.0
FACTS_S = 0.25
Badge = tuple[str, str]
_FACTS: WeakKeyDictionary[Collector, tuple[float, dict[str, Any]]] = WeakKeyDictionary()


def badges(collector: Collector, recording: bool) -> list[Badge]:
    """Kind and text of each badge. The origin is shown only while predictions come."""
    found: list[Badge] = []
    if collector.is_stale:
        found.append(("STALE", _why_stale(collector)))
    else:
        kind = origin(collector)
        found.append((kind, kind))
        prediction = collector.prediction
        if prediction is not None and prediction.abstains:
            found.append(("ABSTAINS", f"ABSTAINS · {prediction.abstains}"))
    if recording:
        found.append(("REC", "REC"))
    return found


def origin(collector: Collector) -> str:
    """LIVE, SAMPLE, CLIP or REPLAY: LIVE only if nothing that is captured comes from a file."""
    about = collector.about
    if about is not None and about.origin == "replay":
        return "REPLAY"
    captured = [collector.statuses[worker].detail for worker in ("video", "audio") if worker in collector.statuses]
    # The workers know best; each may have been started alone.
    origins = {str(detail["origin"]) for detail in captured if "origin" in detail}
    if not origins:
        return about.origin.upper() if about is not None else "LIVE"
    return "SAMPLE" if origins == {"sample"} else "LIVE" if origins == {"device"} else "CLIP"


def source(collector: Collector) -> str:
    """The captured sources, in words."""
    statuses = collector.statuses
    # What was chosen while it runs, the workers alone know.
    chosen = any(statuses[worker].detail.get("chosen") for worker in ("video", "audio") if worker in statuses)
    if collector.about is not None and collector.about.label and not chosen:
        return collector.about.label
    names: list[str] = []
    for worker in ("video", "audio"):
        name = statuses[worker].detail.get("source") if worker in statuses else None
        if name and str(name) not in names:
            names.append(str(name))
    return ", ".join(names)


def shared(collector: Collector) -> dict[str, bool]:
    """Whether the session publishes its picture ("video") and its sound ("audio"), by its own description."""
    return {
        "video": _config(collector, "video").get("preview") == "picture",
        "audio": bool(_config(collector, "audio").get("share")),
    }


def picture_note(collector: Collector, requested: bool) -> str:
    """An explanation of the picture's state; empty if none is needed."""
    video = collector.statuses.get("video")
    elsewhere = "the picture stays on the machine of its camera" if collector.is_elsewhere else ""
    if video is None or collector.status_age_s("video") > SILENT_S:
        return "" if collector.is_stale else elsewhere or "no camera process"
    if video.state == "degraded":
        return video.last_error or "the camera is lost"
    preview = collector.preview
    if preview is None or collector.preview_age_s() > PICTURE_S:
        switched_off = _config(collector, "video").get("preview") == "none"
        return elsewhere or ("previews are switched off" if switched_off else "waiting for the picture")
    if requested and not preview.jpeg:
        return "the picture is switched off"
    return "" if len(preview.landmarks) else "no face in view"


def facts(collector: Collector) -> dict[str, Any]:
    """Figures of each modality's process and the model's, at most a quarter of a second old, shared by browsers."""
    now_s = time.monotonic()
    made_s, figures = _FACTS.get(collector, (-math.inf, {}))
    if now_s - made_s > FACTS_S:
        figures = _facts(collector)
        _FACTS[collector] = now_s, figures
    return figures


def _facts(collector: Collector) -> dict[str, Any]:
    prediction = collector.prediction
    figures: dict[str, Any] = {}
    for modality in MODALITIES:
        worker = WORKER_OF[modality]
        status = collector.statuses.get(worker)
        silent = status is not None and collector.status_age_s(worker) > SILENT_S
        age = prediction.age_ms.get(modality) if prediction is not None else None
        absent = prediction.absent.get(modality) if prediction is not None else None
        figures[modality] = {
            "state": _state(collector, worker),
            "bad": silent or (status is not None and status.state in ("degraded", "failed")),
            "age_ms": None if age is None or absent else round(age),
            "fps": None if status is None or silent else status.fps,
            "drops": None if status is None else sum(status.drops.values()),
            "causes": _causes(status),
            "note": _note(status, absent, silent),
        }
    checkpoint, _, engine = (prediction.model if prediction is not None else "").partition("/")
    inference = collector.statuses.get("inference")
    figures["model"] = {
        "state": _state(collector, "inference"),
        "bad": collector.is_stale,
        "per_second": collector.per_second,
        **collector.latencies(),
        "drops": (sum(inference.drops.values()) if inference is not None else 0) + collector.lost,
        "causes": _causes(inference),
        "checkpoint": checkpoint,
        "engine": engine,
        "note": _session_note(collector),
    }
    return figures


def _session_note(collector: Collector) -> str:
    """A note on the session as a whole, most important first: that recording has stopped."""
    supervisor, inference = collector.statuses.get("supervisor"), collector.statuses.get("inference")
    if supervisor is not None and supervisor.detail.get("recorder.error"):
        return f"not recorded: {supervisor.detail['recorder.error']}"
    return (inference.last_error if inference is not None else None) or ""


def _config(collector: Collector, section: str) -> dict[str, Any]:
    """A section of the session's configuration, from its own description."""
    table: dict[str, Any] = collector.about.config.get(section, {}) if collector.about is not None else {}
    return table


def _state(collector: Collector, worker: str) -> str:
    status = collector.statuses.get(worker)
    if status is None:
        return "not there"
    if status.state in ("ended", "stopped", "failed"):
        return status.state
    age_s = collector.status_age_s(worker)
    return f"silent for {age_s:.0f} s" if age_s > SILENT_S else status.state


def _note(status: Status | None, absent: str | None, silent: bool) -> str:
    if status is None:
        return absent or ""
    if status.last_error:
        return status.last_error
    if absent:
        return absent
    detail = status.detail
    parts = [str(detail[key]) for key in ("source", "asr", "model") if detail.get(key)]
    if detail.get("width"):
        parts.append(f"{detail['width']} × {detail['height']}")
    if not silent and status.cpu_percent is not None and status.rss_mb is not None:
        parts.append(f"{status.cpu_percent:.0f} % of a core, {status.rss_mb:.0f} MB")
    return " · ".join(parts)


def _causes(status: Status | None) -> str:
    drops = {cause: count for cause, count in status.drops.items() if count} if status is not None else {}
    return "dropped: " + ", ".join(f"{cause} {count}" for cause, count in drops.items()) if drops else "nothing dropped"


def _why_stale(collector: Collector) -> str:
    silent_s = collector.silent_s
    inference = collector.statuses.get("inference")
    if inference is not None and inference.state in ("ended", "stopped", "failed"):
        return f"STALE · the session has {'failed' if inference.state == 'failed' else inference.state}"
    return "STALE · no prediction yet" if silent_s is None else f"STALE {silent_s:.0f} s"
