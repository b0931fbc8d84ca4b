"""What `mien bench chaos`, `flood` and `subscribers` run and print: a session under faults and under load."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mien.cli._terminal import ending_signals, make_console
from mien.config import load_config
from mien.errors import SourceError
from mien.install import SAMPLE
from mien.stream.bus.ports import free_ports


def run_chaos(clip: Path | None, asr: str | None, minutes: float, every_s: float, seed: int = 0) -> dict[str, Any]:
    """`mien bench chaos`: a looped clip as camera and microphone, and something that happens every `every_s`."""
    from mien.stream.bench.chaos import Chaos, Outcome
    from mien.stream.bench.devices import SoundCard, clip_camera
    from mien.stream.processes.plan import plan_session

    console = make_console(stderr=True)
    source = clip or SAMPLE
    with ExitStack() as stack, ending_signals() as stopping:
        camera = clip_camera(source)
        camera.switch_on()
        stack.callback(camera.switch_off)
        card = None
        try:
            card = SoundCard(source, Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mien-sound-"))))
            stack.callback(card.close)
            card.plug_in()
            os.environ.update(card.environment)
        except SourceError as error:
            console.print(f"{error}; the clip's own sound is played instead", style="yellow")
        session = plan_session(
            load_config(
                overrides={
                    "video.source": camera.url,
                    "audio.source": "default" if card is not None else str(source),
                    "clip.loop": True,
                    "text.asr": asr,
                    "bus.port": free_ports(),
                    "session": "chaos",
                }
            )
        )

        def show(outcome: Outcome) -> None:
            masked = "not masked" if outcome.masked_s is None else f"masked after {outcome.masked_s:5.2f} s"
            back = "NOT RECOVERED" if outcome.recovered_s is None else f"recovered after {outcome.recovered_s:5.2f} s"
            unexplained = f"  unexplained: {'; '.join(outcome.unexplained)}" if outcome.unexplained else ""
            console.print(
                f"{outcome.fault:<30} {masked:<22} {back:<24} lost {outcome.lost:4}  silence at most "
                f"{outcome.longest_silence_s:4.1f} s  memory {outcome.memory_mb:5.0f} MB{unexplained}",
                soft_wrap=True,
            )

        return Chaos(session, every_s, show, camera, card, seed).run(minutes * 60, stopping)


def run_flood(seconds: float, engine: str, checkpoint: str, factor: int = 10) -> dict[str, Any]:
    """`mien bench flood`: features at `factor` times their rate, after as long at their own."""
    from mien.stream.bench.load import measure_flood

    with ending_signals() as stopping:
        return measure_flood(free_ports(), seconds, factor, engine, checkpoint, stopping)


def run_subscribers(seconds: float, engine: str, checkpoint: str, fast: int = 100, slow: int = 20) -> dict[str, Any]:
    """`mien bench subscribers`: many that read, some that are slow, and one that never does."""
    from mien.stream.bench.load import measure_subscribers

    with ending_signals() as stopping:
        return measure_subscribers(free_ports(), seconds, fast, slow, engine, checkpoint, stopping)
