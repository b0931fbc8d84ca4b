"""`mien watch`: look at a mien that runs."""

from __future__ import annotations

import time
from typing import Annotated

import typer


def command(
    endpoint: Annotated[str, typer.Argument(help="Where it publishes.")] = "tcp://127.0.0.1:5560",
    session: Annotated[str | None, typer.Option(help="One session only.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One prediction a line on standard output.")] = False,
    count: Annotated[int | None, typer.Option("--count", "-n", min=1, help="End after so many predictions.")] = None,
    keys: Annotated[str, typer.Option(help="Folder of keys; another machine needs them, see mien keys.")] = "",
    timeout: Annotated[float | None, typer.Option(help="Give up after so many seconds without one.")] = None,
) -> None:
    """Show the predictions of a running mien, in the terminal or as JSON lines."""
    import sys

    import msgspec
    from rich.live import Live

    from mien.cli import _view
    from mien.cli._terminal import make_console
    from mien.errors import BusError
    from mien.stream.subscriber import Subscriber, explain_silence

    seen = 0
    began_s = heard_s = time.monotonic()
    rate_since_s, rate_seen, per_second = began_s, 0, 0.0
    last = None
    live = None if as_json or not sys.stdout.isatty() else Live(console=make_console(), auto_refresh=False)
    with Subscriber(endpoint, session=session, keys=keys) as subscriber:
        try:
            if live is not None:
                live.start()
            while count is None or seen < count:
                for prediction in subscriber.wait(0.1):
                    last, heard_s = prediction, time.monotonic()
                    seen += 1
                    if as_json:
                        sys.stdout.buffer.write(msgspec.json.encode(prediction) + b"\n")
                        sys.stdout.buffer.flush()
                    elif live is None:
                        print(_view.line(prediction), flush=True)
                    if seen == count:
                        break
                now_s = time.monotonic()
                if now_s - rate_since_s >= 1.0:
                    per_second = (seen - rate_seen) / (now_s - rate_since_s)
                    rate_since_s, rate_seen = now_s, seen
                if live is not None:
                    view = _view.render(
                        last,
                        subscriber.statuses,
                        badge="WATCH",
                        label=endpoint,
                        per_second=per_second,
                        silent_s=now_s - heard_s,
                    )
                    live.update(view, refresh=True)
                if timeout is not None and now_s - heard_s > timeout:
                    raise BusError(explain_silence(endpoint, session, timeout, keys))
        except KeyboardInterrupt:
            pass
        finally:
            if live is not None:
                live.stop()
