"""Access control of the page: on this machine any local user, from other machines those with the token.

Loopback alone is not safe: any web page that the user visits can send requests to 127.0.0.1. So the Host header must
name this server (against DNS rebinding), and requests from another page's script, told by their Origin, are
rejected.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "mien-token"
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
]


class Guard:
    """Middleware in front of everything: pages, files, sockets.

    Args:
        app: to protect.
        port: that the server listens on.
        token: required from clients; empty on loopback, where Host must be a loopback name.
        origins: other pages whose requests are accepted, as browsers name them (`https://example.org`, `null`).
    """

    def __init__(self, app: App, port: int, token: str = "", origins: frozenset[str] = frozenset()) -> None:
        self._app = app
        self._port = port
        self._token = token
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or reject it here."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await _refuse(scope, receive, send, *refusal)
            return
        if self._token and not self._has_cookie(headers):
            given = dict(parse_qsl(scope.get("query_string", b"").decode("latin-1"))).get("token", "")
            if not hmac.compare_digest(given.encode(), self._token.encode()):
                await _refuse(scope, receive, send, 403, "this page asks for the token that mien printed at its start")
                return
            if scope["type"] == "http":
                await self._admit(scope, send)
                return
        await self._app(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope, headers: dict[bytes, str]) -> tuple[int, str] | None:
        host, port = _split(headers.get(b"host", ""))
        if not host or not (self._token or host in _LOOPBACK) or port not in (None, self._port):
            return 421, "this server does not go by that name"
        origin = headers.get(b"origin")
        if origin is None:
            # Browsers send an Origin with every WebSocket, and with every request that changes something.
            safe = scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
            return None if safe else (403, "a request without an origin")
        if origin.lower() in self._origins:
            return None
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https") or parts.netloc.lower() != headers.get(b"host", "").lower():
            return 403, "a request from another page"
        return None

    def _has_cookie(self, headers: dict[bytes, str]) -> bool:
        try:
            morsel = SimpleCookie(headers.get(b"cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return morsel is not None and hmac.compare_digest(morsel.value.encode(), self._token.encode())

    async def _admit(self, scope: Scope, send: Send) -> None:
        """Move the token from the address, which is visible and stored, into a cookie, which is not."""
        rest = [(k, v) for k, v in parse_qsl(scope.get("query_string", b"").decode("latin-1")) if k != "token"]
        target = scope["path"] + ("?" + urlencode(rest) if rest else "")
        cookie = f"{COOKIE}={self._token}; Path=/; HttpOnly; SameSite=Strict"
        headers = [(b"location", target.encode()), (b"set-cookie", cookie.encode()), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 303, "headers": headers + _HEADERS})
        await send({"type": "http.response.body", "body": b""})


def _split(host: str) -> tuple[str, int | None]:
    """Name and port of a Host header; an empty name if it is not one."""
    try:
        parts = urlsplit(f"//{host.lower()}")
        return parts.hostname or "", parts.port
    except ValueError:
        return "", None


def _with_headers(send: Send) -> Send:
    async def send_more(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *_HEADERS]
        await send(message)

    return send_more


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, reason: str) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": reason})
        return
    body = f"mien: {reason}\n".encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode()), *_HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
