"""Serving the page: NiceGUI on a socket bound beforehand, so that a port in use gives a single clear line."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from mien.config import BusConfig, DashboardConfig
from mien.errors import BusError, MienError
from mien.stream.bus.curve import is_loopback
from mien.stream.dashboard.control import ChoiceRequest, PeopleRequest
from mien.stream.dashboard.recordings import Label
from mien.stream.dashboard.session_view import SessionView, SessionViews
from mien.stream.processes.priority import lower_priority

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

ASSETS = Path(__file__).parent / "static"
_POLL_S = 0.1


@dataclass(frozen=True)
class Place:
    """The page's address, and the open socket."""

    socket: socket.socket
    host: str
    port: int
    token: str

    @property
    def url(self) -> str:
        """The URL to open, here or on another machine, including the token if one is required."""
        host = _own_address(self.host)
        name = f"[{host}]" if ":" in host else host
        return f"http://{name}:{self.port}" + (f"/?token={self.token}" if self.token else "")


class RecordRequest(msgspec.Struct, frozen=True):
    """The request of the page's record button."""

    on: bool
    video: bool = False
    audio: bool = False


def _own_address(host: str) -> str:
    """The address at which others reach what listens at `host`: for all addresses, that of the default route."""
    if host not in ("0.0.0.0", "::"):
        return host
    family, outside = (socket.AF_INET, "192.0.2.1") if host == "0.0.0.0" else (socket.AF_INET6, "2001:db8::1")
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((outside, 9))  # resolves the route; nothing is sent
            return str(probe.getsockname()[0])
    except OSError:
        return socket.gethostname()


def take_place(address: str, port: int, token: str, advice: str) -> Place:
    """Bind a port for a web server.

    Args:
        token: required from clients on other machines; empty generates one.
        advice: how to choose another port, for the error.

    Raises:
        BusError: it is in use, or the address is not local.
    """
    host = address.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(64)
    except OSError as error:
        listener.close()
        raise BusError(
            f"cannot listen on {host}:{port} ({(error.strerror or str(error)).lower()}); {advice}"
        ) from error
    token_asked = "" if is_loopback(host) else token or secrets.token_urlsafe(18)
    return Place(listener, host, listener.getsockname()[1], token_asked)


def serve(
    place: Place,
    config: DashboardConfig,
    bus: BusConfig,
    session: str | None,
    is_stopping: Callable[[], bool],
    ready: Callable[[str], None],
    replayed: Path | None = None,
) -> None:
    """Serve the page until told to stop.

    Args:
        replayed: the recording being replayed, if labels should go to it.
        is_stopping: polled ten times a second.
        ready: called with the page's address once it can be opened.

    Raises:
        MienError: the session's address or its keys cannot be used.
    """
    lower_priority()
    with contextlib.closing(SessionViews(config, bus, session, replayed, trusted=not place.token)) as views:
        asyncio.run(serve_app(_build(place, config, views), place, is_stopping, ready))


def _build(place: Place, config: DashboardConfig, views: SessionViews) -> ASGIApp:
    from fastapi import FastAPI, Request, WebSocket
    from fastapi.responses import FileResponse, JSONResponse, RedirectResponse, Response
    from nicegui import ui
    from starlette.staticfiles import StaticFiles

    import mien
    from mien.stream.dashboard.feed import serve_feed
    from mien.stream.dashboard.guard import Guard

    app = FastAPI(openapi_url=None)
    app.add_middleware(Guard, port=place.port, token=place.token)
    app.mount("/assets", StaticFiles(directory=ASSETS))

    def view_of(connection: Request | WebSocket) -> SessionView:
        return views.of(connection.query_params.get("session"))

    async def feed(socket: WebSocket) -> None:
        try:
            view = view_of(socket)
        except MienError as error:
            await socket.close(1008, str(error))
            return
        await serve_feed(socket, view, views, round(config.minutes * 60_000))

    async def all_sessions(_: Request) -> Response:
        sessions = views.sessions
        found = {
            "endpoint": sessions.endpoint if sessions is not None else "",
            "sessions": sessions.rows() if sessions is not None else [],
        }
        return Response(
            msgspec.json.encode(found), media_type="application/json", headers={"Cache-Control": "no-store"}
        )

    async def grid(_: Request) -> Response:
        if views.sessions is None:
            return RedirectResponse("/")  # a single session is shown
        return FileResponse(ASSETS / "sessions.html", headers={"Cache-Control": "no-cache"})

    def order(kind: Any, carry_out: Callable[[SessionView, Any], dict[str, Any]]) -> Callable[..., Any]:
        async def endpoint(request: Request) -> JSONResponse:
            given, status = None, 400
            try:
                given = msgspec.json.decode(await request.body(), type=kind)
                return JSONResponse(await asyncio.to_thread(carry_out, view_of(request), given))
            except (MienError, msgspec.MsgspecError) as error:
                if isinstance(given, ChoiceRequest) and not given.chooses:
                    status = 200  # a temporarily missing worker is a valid answer to which options there are
                return JSONResponse({"error": str(error)}, status_code=status)

        return endpoint

    app.router.add_websocket_route("/feed", feed)
    app.router.add_route("/sessions", grid, methods=["GET"])
    app.router.add_route("/sessions.json", all_sessions, methods=["GET"])
    for path, kind, carry_out in (
        ("/record", RecordRequest, _record),
        ("/choices", ChoiceRequest, lambda view, request: view.control.choose(request)),
        ("/people", PeopleRequest, lambda view, request: view.control.people(request)),
        ("/labels", Label | None, _label),
    ):
        app.router.add_route(path, order(kind, carry_out), methods=["POST"])
    version = f"{mien.__version__}-{max(file.stat().st_mtime_ns for file in ASSETS.iterdir())}"

    def page() -> None:
        ui.add_head_html(
            f'<link rel="stylesheet" href="/assets/dashboard.css?{version}">'
            f'<script src="/assets/theme.js?{version}"></script><script>document.documentElement.lang = "en";</script>'
        )
        ui.html((ASSETS / "dashboard.html").read_text(encoding="utf-8"), sanitize=False)
        with ui.teleport(".js-chart"):
            ui.echart({"series": []}).classes("m-chart")
        ui.add_body_html(f'<script type="module" src="/assets/dashboard.js?{version}"></script>')

    ui.run_with(
        app,
        root=page,
        title="mien",
        favicon=ASSETS / "mark.svg",
        tailwind=False,
        show_welcome_message=False,
        # NiceGUI reloads a page after a longer absence; a busy browser must not lose its page.
        reconnect_timeout=120.0,
    )
    return app


def _record(view: SessionView, request: RecordRequest) -> dict[str, Any]:
    if request.on:
        return {"path": str(view.recordings.start(video=request.video, audio=request.audio))}
    view.recordings.stop()
    return {}


def _label(view: SessionView, label: Label | None) -> dict[str, Any]:
    return {"said": view.recordings.take_back() if label is None else view.recordings.label(label)}


async def serve_app(app: ASGIApp, place: Place, is_stopping: Callable[[], bool], ready: Callable[[str], None]) -> None:
    """Serve an ASGI application on a bound socket until stopped; `ready` gets its address once it answers."""
    import uvicorn

    config = uvicorn.Config(
        ignoring_absence(app),
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
        ws_max_size=1 << 20,
        ws_ping_interval=None,
    )
    server = uvicorn.Server(config)
    # Ctrl-C is handled by the parent process.
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    serving = asyncio.create_task(server.serve(sockets=[place.socket]))
    announced = False
    while not serving.done():
        if is_stopping() and not server.should_exit:
            server.should_exit = True
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # requests that it cancels are no errors
        if server.started and not announced:
            announced = True
            ready(place.url)
        await asyncio.wait({serving}, timeout=_POLL_S)
    await serving


def ignoring_absence(app: ASGIApp) -> ASGIApp:
    """The application without its errors about clients that went away before they were answered."""
    from starlette.requests import ClientDisconnect

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        is_gone = False

        async def receive_watched() -> Message:
            nonlocal is_gone
            message = await receive()
            is_gone |= message["type"] == "http.disconnect"
            return message

        try:
            await app(scope, receive_watched, send)
        except ClientDisconnect:
            pass
        except RuntimeError as error:
            if not is_gone or str(error) != "No response returned.":  # Starlette's middleware
                raise

    return serve
