"""From corpora to a set of weights: text encoder, face encoder, extraction, speech, fusion, calibration."""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.queues
import queue
import threading
from pathlib import Path
from typing import Any, TypeAlias

import filelock

from mien.errors import ConfigError, DataError
from mien.files import make_folder
from mien.models.training.device import training_device
from mien.models.training.loop import Progress
from mien.stream.offline.plan import STAGES, TrainPlan, output_folder
from mien.stream.offline.pool import worker_pool
from mien.stream.offline.stages import STAGE, Stage

log = logging.getLogger(__name__)

Reports: TypeAlias = "multiprocessing.queues.Queue[tuple[str, int, int]]"

_reports: Reports  # from a stage in its own process to the process that waits for it


def train(plan: TrainPlan, progress: Progress | None = None) -> dict[str, Any]:
    """Run the stages of a plan.

    Returns:
        Metrics of each stage on its validation split.

    Raises:
        DataError, AssetError, ConfigError: something is missing or wrong, or another run uses the working directory.
    """
    unknown = sorted(set(plan.stages) - set(STAGES))
    if unknown:
        raise ConfigError(f"unknown stage {unknown[0]}; known: {', '.join(STAGES)}")
    training_device(plan.device)
    if not plan.data:
        raise DataError("nothing to train on; name corpora or datasets with --data")
    for folder in (Path(plan.work), output_folder(plan)):
        make_folder(folder, error=ConfigError)
    figures: dict[str, Any] = {}
    try:
        with filelock.FileLock(Path(plan.work) / ".lock", timeout=0):
            for stage in STAGES:
                if stage in plan.stages:
                    log.info("stage %s", stage)
                    run = STAGE[stage]
                    # These change an extractor. In another process, so that the next stage sees its new name.
                    apart = stage in ("text", "face")
                    figures[stage] = in_own_process(run, plan, progress) if apart else run(plan, progress)
    except filelock.Timeout as error:
        raise ConfigError(f"another `mien train` runs in {plan.work}; wait for it, or choose another --work") from error
    return figures


def in_own_process(run: Stage, plan: TrainPlan, progress: Progress | None) -> Any:
    """Run a stage in another process, calling `progress` in this one; returns or raises what the stage does."""
    level = logging.getLogger().level
    reports: Reports = multiprocessing.get_context("spawn").Queue()
    ended = threading.Event()

    def pass_on() -> None:
        while True:
            try:
                report = reports.get(timeout=0.2)
            except queue.Empty:
                if ended.is_set():
                    return
                continue
            if progress is not None:
                progress(*report)

    listener = threading.Thread(target=pass_on, name="progress", daemon=True)
    listener.start()
    try:
        with worker_pool(1, _begin_alone, level, reports) as pool:
            return pool.submit(_run_alone, run, plan).result()
    finally:
        ended.set()
        listener.join(2.0)


def _begin_alone(level: int, reports: Reports) -> None:
    global _reports
    logging.basicConfig(level=level, format="%(asctime)s %(message)s")
    _reports = reports


def _run_alone(run: Stage, plan: TrainPlan) -> Any:
    return run(plan, lambda what, done, total: _reports.put((what, done, total)))
