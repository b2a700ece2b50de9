"""Refusal of requests that are too large, or that another page or host name leads here, and headers of every response."""

import ipaddress
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse

from cacenet_jax.errors import printable

MAX_BODY = 32 << 20  # bytes of a request; uploads stay in memory
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_LARGE = f"found a request of more than {MAX_BODY >> 20} MiB, expected less; choose fewer or smaller images"


class Guard:
    """ASGI middleware that checks host, size and origin of requests, and adds `HEADERS` to responses.

    A foreign site can have its own name resolve to this machine (DNS rebinding), but not an IP address: requests to an
    address are accepted, requests to a name only if it is a known one.
    """

    def __init__(self, app: Any, hosts: Sequence[str]):
        """Wrap an application.

        Args:
            app: the application.
            hosts: names that requests may be addressed to.
        """
        self._app, self._hosts = app, {name.lower() for name in hosts}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, size = Headers(scope=scope), 0

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        async def receive_limited() -> Any:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > MAX_BODY:
                raise HTTPException(413, _LARGE)
            return message

        refusal = self._wrong_host(headers) or _refusal(scope["method"], headers)
        await (refusal or self._app)(scope, receive_limited, send_with_headers)

    def _wrong_host(self, headers: Headers) -> PlainTextResponse | None:
        host = headers.get("host", "")
        try:
            name = urlsplit(f"//{host}").hostname or ""
            if name in self._hosts or ipaddress.ip_address(name):
                return None
        except ValueError:
            pass
        return PlainTextResponse(
            f"found the host name {printable(host, 100)!r}, expected an IP address or the name given by --host; open the "
            "address that the command printed",
            400,
        )


def _refusal(method: str, headers: Headers) -> PlainTextResponse | None:
    """Return the response to a request that its headers forbid."""
    if method in ("GET", "HEAD"):
        return None
    origin, site = headers.get("origin"), headers.get("sec-fetch-site", "same-origin")
    if (origin is not None and urlsplit(origin).netloc != headers.get("host")) or site not in ("same-origin", "none"):
        return PlainTextResponse("found a request of another page, expected one of this page", 403)
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > MAX_BODY:
        return PlainTextResponse(_LARGE, 413, {"Connection": "close"})
    return None
