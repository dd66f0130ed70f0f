"""How much and how often one may ask the server: what is too large or too fast is refused before anything of it is read."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

LARGEST_REQUEST = 2 * 2**20  # bytes; the pages send texts, votes and files of users' tokens
A_MINUTE = {"/login": 60, "/upload": 30}  # POST requests from one address to a path that ends so


@dataclass(frozen=True, slots=True)
class Pace:
    """At most `count` times in `seconds` for each name."""

    count: int
    seconds: float
    _recent: dict[str, deque[float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def allows(self, name: str) -> bool:
        """Return whether it may be done now for `name`; if so, it counts as done.

        >>> twice_a_minute = Pace(2, 60.0)
        >>> [twice_a_minute.allows(name) for name in ("ada", "ada", "bob", "ada")]
        [True, True, True, False]
        """
        now = time.monotonic()
        with self._lock:
            recent = self._recent.setdefault(name, deque(maxlen=self.count))
            if len(recent) == self.count and now - recent[0] < self.seconds:
                return False
            recent.append(now)
            return True


class RequestLimits:
    """ASGI middleware that refuses requests which are too large (413), do not say how large they are (411), or come too often (429).

    Example:
        >>> FastAPI(middleware=[Middleware(RequestLimits)])  # doctest: +SKIP
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.paces = {end: Pace(count, 60.0) for end, count in A_MINUTE.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with the reason why not."""
        answer = self._refusal(scope) if scope["type"] == "http" else None
        await (answer or self.app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> PlainTextResponse | None:
        headers = Headers(scope=scope)
        length = headers.get("content-length", "0")
        if "transfer-encoding" in headers:
            return PlainTextResponse("a request must say its length", 411, {"Connection": "close"})
        if not length.isdecimal() or int(length) > LARGEST_REQUEST:
            return PlainTextResponse(f"at most {LARGEST_REQUEST} bytes", 413, {"Connection": "close"})
        address = (scope.get("client") or ("",))[0]
        for end, pace in self.paces.items():
            if scope["method"] == "POST" and scope["path"].rstrip("/").endswith(end) and not pace.allows(address):
                return PlainTextResponse("too many requests; wait a minute", 429)
        return None
