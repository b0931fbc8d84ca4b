"""Access control of the page: on this machine any local user, from other machines those with the token.

Loopback alone is not safe: any web page that the user visits can send requests to 127.0.0.1. So the Host header must
name this server (against DNS rebinding), and requests from another page's script, told by their Origin, are
rejected.
"""

from __future__ import annotations

import hmac
from urllib.parse import urlencode, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "mien-token"
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})
_HEADERS = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "x-frame-options": "DENY"}


class Guard:
    """Middleware in front of everything: pages, files, sockets.

    Args:
        token: required from clients; empty on loopback, where Host must be a loopback name.
        origins: other pages whose requests are accepted, as browsers name them (`https://example.org`, `null`).
        programs: paths for programs, which send no Origin and keep no cookies.
    """

    def __init__(
        self,
        app: ASGIApp,
        port: int,
        token: str = "",
        origins: frozenset[str] = frozenset(),
        programs: frozenset[str] = frozenset(),
    ) -> None:
        self._app = app
        self._port = port
        self._token = token
        self._origins = origins
        self._programs = programs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or reject it here."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        refusal = self._refusal(connection)
        if refusal is None and not self._is_token(connection.cookies.get(COOKIE, "")):
            if not self._is_token(connection.query_params.get("token", "")):
                refusal = 403, "this page asks for the token that mien printed at its start"
            elif scope["type"] == "http" and scope["path"] not in self._programs:
                await self._admit(connection)(scope, receive, send)
                return
        if refusal is None:
            await self._app(scope, receive, _with_headers(send))
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": refusal[1]})
        else:
            await PlainTextResponse(f"mien: {refusal[1]}\n", refusal[0], _HEADERS)(scope, receive, send)

    def _refusal(self, connection: HTTPConnection) -> tuple[int, str] | None:
        named, origin = connection.headers.get("host", "").lower(), connection.headers.get("origin")
        host, port = _split(named)
        if not host or not (self._token or host in _LOOPBACK) or port not in (None, self._port):
            return 421, "this server does not go by that name"
        if origin is None:
            # Browsers send an Origin with every WebSocket, and with every request that changes something.
            reads = connection.scope["type"] == "http" and connection.scope["method"] in ("GET", "HEAD")
            by_program = connection.scope["type"] == "websocket" and connection.scope["path"] in self._programs
            return None if reads or by_program else (403, "a request without an origin")
        if origin.lower() in self._origins:
            return None
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https") or parts.netloc.lower() != named:
            return 403, "a request from another page"
        return None

    def _is_token(self, given: str) -> bool:
        return not self._token or hmac.compare_digest(given.encode(), self._token.encode())

    def _admit(self, connection: HTTPConnection) -> RedirectResponse:
        """Move the token from the address, which is visible and stored, into a cookie, which is not."""
        rest = [(key, value) for key, value in connection.query_params.multi_items() if key != "token"]
        target = "/" + connection.url.path.lstrip("/") + ("?" + urlencode(rest) if rest else "")  # on this server only
        response = RedirectResponse(target, 303, {**_HEADERS, "cache-control": "no-store"})
        response.set_cookie(COOKIE, self._token, httponly=True, samesite="strict")
        return response


def _split(host: str) -> tuple[str, int | None]:
    """Name and port of a Host header; an empty name if it is not one."""
    try:
        parts = urlsplit(f"//{host}")
        return parts.hostname or "", parts.port
    except ValueError:
        return "", None


def _with_headers(send: Send) -> Send:
    async def send_more(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(_HEADERS)
        await send(message)

    return send_more
