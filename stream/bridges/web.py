"""WebSocket and server-sent events: predictions as JSON for pages, games and overlays.

    ws://127.0.0.1:5590/ws         one JSON object a message: the newest statuses, then predictions and changed statuses
    http://127.0.0.1:5590/events   the same as server-sent events, `event: prediction` or `event: status`
    http://127.0.0.1:5590/overlay  a transparent page, for a browser source of a streaming program

Both take `?session=NAME`, `?rate_hz=10` and `?fields=sentiment,emotions`; filtered fields are never encoded. Hosts,
origins and tokens are checked as for the dashboard (`mien.stream.dashboard.guard`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from pathlib import Path

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from mien.messages import Prediction, Status
from mien.stream.bridges.feed import Counts, Event
from mien.stream.dashboard.guard import Guard
from mien.stream.dashboard.server import Place

OVERLAY = Path(__file__).parent / "static" / "overlay.html"
_QUEUE = 32  # events queued per client; the oldest is dropped
_MAX_CLIENTS = 256
_FIELDS = Prediction.__struct_fields__
_encode = msgspec.json.Encoder().encode


class Client:
    """A connection's bounded queue.

    Args:
        query: its URL's: `session`, `rate_hz` and `fields`; without them it gets everything.
        statuses: the newest so far, which it gets first.

    Raises:
        ValueError: what is wrong with the query.
    """

    def __init__(self, query: Mapping[str, str], counts: Counts, statuses: Collection[Status] = ()) -> None:
        self._session = query.get("session", "")
        self._fields = tuple(filter(None, query.get("fields", "").split(","))) or _FIELDS
        unknown = sorted(set(self._fields).difference(_FIELDS))
        if unknown:
            raise ValueError(f"unknown field {unknown[0]}; known: {', '.join(sorted(_FIELDS))}")
        try:
            self._rate_hz = float(query.get("rate_hz", 0))
        except ValueError:
            raise ValueError("rate_hz has to be a number") from None
        if not 0 <= self._rate_hz <= 1000:
            raise ValueError("rate_hz has to be between 0 and 1000")
        self._counts = counts
        self._events: asyncio.Queue[Event] = asyncio.Queue(_QUEUE + len(statuses))
        self._due_s: dict[str, float] = {}  # by session
        for status in statuses:
            self.offer(status)

    def offer(self, event: Event) -> None:
        """Queue an event if it was asked for."""
        if self._session and event.session != self._session:
            return
        if self._rate_hz and isinstance(event, Prediction):
            now_s = time.monotonic()
            due_s, interval_s = self._due_s.get(event.session, 0.0), 1 / self._rate_hz
            if now_s < due_s:
                return
            self._due_s[event.session] = max(due_s, now_s - interval_s) + interval_s
        if self._events.full():
            self._events.get_nowait()
            self._counts.dropped += 1
        self._events.put_nowait(event)

    async def next(self) -> tuple[str, bytes]:
        """The next event: "prediction" or "status", and its JSON."""
        event = await self._events.get()
        self._counts.sent += 1
        if not isinstance(event, Prediction):
            return "status", _encode({"type": "status", **msgspec.structs.asdict(event)})
        return "prediction", _encode({"type": "prediction"} | {name: getattr(event, name) for name in self._fields})


class WebOutlet:
    """The bridge's web application, for the event loop that serves it."""

    def __init__(self, place: Place, origins: frozenset[str], counts: Counts) -> None:
        self._counts = counts
        self._clients: set[Client] = set()
        self._statuses: dict[tuple[str, str], Status] = {}  # the newest, by session and worker
        self._loop = asyncio.get_running_loop()
        routes = [
            WebSocketRoute("/ws", self._socket),
            Route("/events", self._events),
            Route("/overlay", lambda _: FileResponse(OVERLAY)),
            Route("/", lambda _: PlainTextResponse("mien: /ws, /events, /overlay\n")),
        ]
        programs = frozenset({"/ws", "/events"})
        self.app = Guard(Starlette(routes=routes), place.port, place.token, origins, programs)

    def send(self, event: Event) -> None:
        """Queue an event for every client. Called from the thread that reads the bus."""
        # The loop is closing.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._offer, event)

    def _offer(self, event: Event) -> None:
        if isinstance(event, Status):
            self._statuses[event.session, event.worker] = event
        for client in self._clients:
            client.offer(event)

    @contextlib.contextmanager
    def _client(self, query: Mapping[str, str]) -> Iterator[Client]:
        client = Client(query, self._counts, self._statuses.values())
        if len(self._clients) >= _MAX_CLIENTS:
            raise ValueError(f"there are {_MAX_CLIENTS} clients already")
        self._clients.add(client)
        self._counts.connects += 1
        try:
            yield client
        finally:
            self._clients.discard(client)

    async def _socket(self, socket: WebSocket) -> None:
        await socket.accept()
        try:
            with self._client(socket.query_params) as client:
                gone = asyncio.ensure_future(_until_gone(socket))
                while not gone.done():
                    following = asyncio.ensure_future(client.next())
                    await asyncio.wait({gone, following}, return_when=asyncio.FIRST_COMPLETED)
                    if not following.done():
                        following.cancel()
                        return
                    await socket.send_text(following.result()[1].decode())
        except ValueError as error:
            await socket.close(1008, str(error)[:120])
        except WebSocketDisconnect:
            pass

    async def _events(self, request: Request) -> Response:
        try:
            Client(request.query_params, self._counts)
        except ValueError as error:
            return PlainTextResponse(f"mien: {error}\n", 400)
        return StreamingResponse(
            self._stream(request.query_params), media_type="text/event-stream", headers={"cache-control": "no-store"}
        )

    async def _stream(self, query: Mapping[str, str]) -> AsyncIterator[bytes]:
        with self._client(query) as client:
            while True:
                try:
                    kind, payload = await asyncio.wait_for(client.next(), 15)
                except TimeoutError:
                    yield b": still here\n\n"  # a comment, so that a broken connection is noticed
                    continue
                yield b"event: %s\ndata: %s\n\n" % (kind.encode(), payload)


async def _until_gone(socket: WebSocket) -> None:
    """Read until the peer closes; its messages are ignored."""
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        while True:
            await socket.receive_text()
