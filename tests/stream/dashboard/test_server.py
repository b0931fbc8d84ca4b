"""What serves the page: clients that go away are no errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the dashboard's packages")

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from mien.stream.dashboard.server import ignoring_absence


async def _pass_on(request: Request, call_next: Any) -> Response:
    return await call_next(request)  # type: ignore[no-any-return]


async def _answer_slowly(_: Request) -> Response:
    async def content() -> AsyncIterator[bytes]:
        await asyncio.sleep(60)
        yield b"late"

    return StreamingResponse(content())


async def _read(request: Request) -> Response:
    return Response(await request.body())


async def _fail(_: Request) -> Response:
    raise RuntimeError("No response returned.")


def _request(path: str, *messages: str) -> None:
    """A request from a client that sends these messages."""
    routes = [Route("/slow", _answer_slowly), Route("/body", _read), Route("/fault", _fail)]
    around = [Middleware(BaseHTTPMiddleware, dispatch=_pass_on), Middleware(GZipMiddleware)]  # as NiceGUI does
    app = ignoring_absence(Starlette(routes=routes, middleware=around))
    left = list(messages)

    async def receive() -> dict[str, Any]:
        if not left:
            await asyncio.sleep(60)
        return {"type": left.pop(0)}

    async def send(_: Any) -> None:
        pass

    scope = {"type": "http", "asgi": {"spec_version": "2.3"}, "method": "GET", "path": path, "headers": []}

    async def serve() -> None:
        await app({**scope, "query_string": b"", "root_path": ""}, receive, send)

    asyncio.run(serve())


@pytest.mark.parametrize("path", ["/slow", "/body"])
def test_a_client_that_goes_away_is_no_error(path: str) -> None:
    _request(path, "http.disconnect", "http.disconnect")


def test_a_fault_is_one() -> None:
    with pytest.raises(RuntimeError):
        _request("/fault", "http.request")
