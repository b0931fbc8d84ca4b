"""`mien watch`: follow a running mien."""

from __future__ import annotations

import time
from collections import deque
from typing import Annotated

import typer

from mien.cli import _options as options

_SILENT_S = 3.0  # without predictions, after which the reason is shown
_HISTORY, _STEP_S = 400, 0.5  # points of the sentiment's curve, and the time between two


def command(
    endpoint: options.Endpoint = "tcp://127.0.0.1:5560",
    session: options.OneSession = None,
    as_json: options.JsonLines = False,
    count: Annotated[int | None, typer.Option("--count", "-n", min=1, help="End after this many predictions.")] = None,
    keys: options.Keys = "",
    timeout: Annotated[float | None, typer.Option(help="Give up after this many seconds without a prediction.")] = None,
) -> None:
    """Show the predictions of a running mien, in the terminal (q quits) or as JSON lines."""
    import contextlib
    import sys

    import msgspec
    from rich.live import Live

    from mien.cli import _view
    from mien.cli._terminal import make_console, pressed_keys
    from mien.errors import BusError
    from mien.stream.bus.subscriber import Subscriber, explain_silence

    seen = 0
    began_s = heard_s = drawn_s = time.monotonic()
    rate_since_s, rate_seen, per_second = began_s, 0, 0.0
    last = None
    note = ""
    history: deque[float | None] = deque(maxlen=_HISTORY)
    console = make_console()
    live = None if as_json or not sys.stdout.isatty() else Live(console=console, auto_refresh=False, screen=True)
    with contextlib.ExitStack() as stack:
        subscriber = stack.enter_context(Subscriber(endpoint, session=session, keys=keys))
        stack.enter_context(contextlib.suppress(KeyboardInterrupt))
        take_keys = stack.enter_context(pressed_keys()) if live is not None else lambda: ""
        if live is not None:
            stack.enter_context(live)
        while (count is None or seen < count) and "q" not in take_keys().lower():
            for prediction in subscriber.wait(0.1):
                now_s = time.monotonic()
                if live is not None and last is not None and prediction.session != last.session:
                    if now_s - heard_s < _SILENT_S:
                        continue  # the view has room for one session
                    history.clear()
                last, heard_s, note = prediction, now_s, ""
                seen += 1
                if as_json:
                    sys.stdout.buffer.write(msgspec.json.encode(prediction) + b"\n")
                    sys.stdout.buffer.flush()
                elif live is None:
                    name = f"{prediction.session}  " if len(subscriber.sessions) > 1 else ""
                    print(name + _view.line(prediction), flush=True)
                if seen == count:
                    break
            now_s = time.monotonic()
            if now_s - rate_since_s >= 1.0:
                per_second = (seen - rate_seen) / (now_s - rate_since_s)
                rate_since_s, rate_seen = now_s, seen
            if timeout is not None and now_s - heard_s > timeout:
                raise BusError(explain_silence(endpoint, session, timeout, keys))
            if not note and now_s - heard_s > _SILENT_S:
                # It may still start, so this is no error; but a misspelt name should be noticed.
                note = explain_silence(endpoint, session, round(now_s - heard_s), keys)
                if live is None:
                    typer.echo(f"mien: {note}; waiting", err=True)
            if live is not None:
                if now_s - drawn_s >= _STEP_S:
                    drawn_s = now_s
                    history.append(last.sentiment_smooth if last is not None and now_s - heard_s < _STEP_S else None)
                others = [name for name in subscriber.sessions if last is not None and name != last.session]
                label = endpoint
                if last is not None and others:
                    label += f"  {last.session}; --session shows {' or '.join(others[:3])}"
                view = _view.render(
                    last,
                    subscriber.statuses_of(last.session) if last is not None else subscriber.statuses,
                    badge="WATCH",
                    label=label,
                    per_second=per_second,
                    silent_s=now_s - heard_s,
                    width=console.width,
                    height=console.height,
                    fill=True,
                    note=note,
                    history=history,
                )
                live.update(view, refresh=True)
