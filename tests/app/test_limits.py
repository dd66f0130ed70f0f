"""What is asked too often or is too large never reaches the pages."""

from __future__ import annotations

import asyncio

from diffalign.app import limits
from diffalign.app.limits import A_MINUTE, LARGEST_REQUEST, Pace, RequestLimits


def status(server: RequestLimits, method: str, path: str, client: str = "1.2.3.4", **headers: str) -> int:
    """Return what a request is answered; 200 is the page's."""
    sent = []

    async def send(message):
        sent.append(message)

    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": pairs, "client": (client, 5)}
    asyncio.run(server(scope, None, send))
    return sent[0]["status"]


async def page(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})


def test_guesses_of_passwords_and_uploads_are_slowed_down_address_by_address(monkeypatch):
    monkeypatch.setattr(limits.time, "monotonic", lambda: 0.0)
    server = RequestLimits(page)
    for end, count in A_MINUTE.items():
        assert [status(server, "POST", f"/vote{end}/") for _ in range(count + 2)] == [200] * count + [429, 429]
        assert status(server, "POST", end, client="5.6.7.8") == 200
        assert status(server, "GET", end) == 200
    monkeypatch.setattr(limits.time, "monotonic", lambda: 61.0)
    assert status(server, "POST", "/login") == 200


def test_a_request_is_refused_by_its_size_or_where_it_says_none():
    server = RequestLimits(page)
    assert status(server, "POST", "/any", content_length=str(LARGEST_REQUEST)) == 200
    for length in (str(LARGEST_REQUEST + 1), "1e9", "-1", "", "²"):
        assert status(server, "POST", "/any", content_length=length) == 413, length
    assert status(server, "POST", "/any", transfer_encoding="chunked") == 411


def test_what_was_done_long_ago_does_not_count(monkeypatch):
    pace, now = Pace(2, 10.0), [0.0, 5.0, 9.0, 10.0, 14.0, 15.0]
    monkeypatch.setattr(limits.time, "monotonic", lambda: now.pop(0))
    assert [pace.allows("ada") for _ in range(6)] == [True, True, False, True, False, True]
