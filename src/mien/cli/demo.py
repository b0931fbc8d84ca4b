"""`mien demo`: camera and microphone, or the built-in sample without them."""

from __future__ import annotations

from typing import Annotated

import typer

from mien.cli import _options as options


def command(
    config: options.Configuration = None,
    camera: options.Camera = None,
    mic: options.Mic = None,
    clip: Annotated[str | None, typer.Option(help="Play a file instead of the devices.")] = None,
    asr: options.Asr = None,
    person: options.Person = None,
    seconds: options.Seconds = None,
    headless: Annotated[bool, typer.Option("--headless", help="Print lines; no live view, no dashboard.")] = False,
    window: Annotated[bool, typer.Option("--window", help="A window with overlay instead of the dashboard.")] = False,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the dashboard in the browser.")] = True,
    sample: Annotated[bool, typer.Option("--sample", help="Play the sample even if there is a camera.")] = False,
    as_json: options.JsonLines = False,
    port: options.Port = None,
    dashboard_port: Annotated[int | None, typer.Option(help="Port of the dashboard; 0: any.")] = None,
    summary: options.Summary = None,
) -> None:
    """Show live predictions from your camera and microphone, or from the built-in sample."""
    from mien.cli._session import output_of, run_session
    from mien.config import load_config
    from mien.install import SAMPLE, install_command
    from mien.stream.dashboard.launch import DashboardProcess, has_page
    from mien.stream.processes.plan import find_camera, plan_session
    from mien.stream.sources.devices import microphones

    overrides: dict[str, object] = {}
    chosen = load_config(config)
    is_chosen = any((camera, mic, clip)) or (chosen.video.source, chosen.audio.source) != ("auto", "auto")
    badge = "CLIP" if clip else "LIVE"
    if is_chosen and not sample:
        overrides |= {"video.source": camera or clip, "audio.source": mic or clip}
    elif sample or not (find_camera() or microphones()):
        if not sample:
            typer.echo("No camera and no microphone found: playing the built-in sample.", err=True)
        badge = "SAMPLE"
        overrides |= {"video.source": str(SAMPLE), "audio.source": str(SAMPLE), "clip.loop": True}
    session = plan_session(
        options.configured(config, overrides, asr=asr, person=person, port=port, dashboard_port=dashboard_port)
    )
    display = window or not headless
    if display and not window and not has_page():
        typer.echo(f"no dashboard: it needs the package nicegui; {install_command('dashboard')}", err=True)
        display = False
    run_session(
        session,
        badge=badge,
        seconds=seconds,
        output=output_of(as_json=as_json, quiet=headless),
        summary_path=summary,
        dashboard=(lambda: DashboardProcess(session.config, window=window, browser=browser)) if display else None,
    )
