"""How a judge on a server is sent a question: one client for the scorers `http` and `vlm`.

A failure is never a score. What may pass (no connection, an answer that is cut off or late, status 408, 425, 429 or 5xx) is sent again
with growing pauses, or after the pause that the server names (`Retry-After`); an answer that cannot be read is sent for again, too.
Keys come from the environment alone, and no message has a key, or words of the server, in it.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from typing import Any, TypeVar

import requests
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError, InvalidHeader
from urllib3.util import Retry

from diffalign.core.errors import ConfigError
from diffalign.core.redaction import has_secret, redacted

logger = logging.getLogger(__name__)
MOST_BYTES = 1_000_000  # of an answer
PASSING = (408, 425, 429)  # statuses after which the same request may succeed, and so it may after any from 500 on
RETRIES, BACKOFF = 5, 0.5  # of a failure; seconds before them: 0.5, 1, 2, 4, 8, or what the server names
READINGS = 3  # requests for an answer that cannot be read
LONGEST_PAUSE = 120.0  # seconds; a server that names a longer one is asked again after these

Post = Callable[[str, Mapping[str, Any], float, str | None], bytes]  # (url, JSON, seconds, key) -> body of the answer
T = TypeVar("T")
U = TypeVar("U")


class NoAnswerError(ConfigError):
    """A server gave no answer that can be read, however often it was sent the question; the next question may have one."""


class BadAnswerError(NoAnswerError):
    """An answer is there and is not what was asked for."""


class _PassingError(Exception):
    """A failure that may pass; `pause` is the seconds that the server wants left."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


class RejectedError(ConfigError):
    """A server will not take this request (status 400); `body` is its answer, which no message shows."""

    def __init__(self, message: str, body: bytes) -> None:
        super().__init__(message)
        self.body = body


def key_variable(name: str) -> str:
    """Return the environment variable with the key of a scorer.

    >>> key_variable("my-judge")
    'DIFFALIGN_KEY_MY_JUDGE'
    """
    return "DIFFALIGN_KEY_" + re.sub(r"\W", "_", name).upper()


def check_address(scorer: str, url: str, name: str) -> None:
    """Raise ConfigError for an address of another kind, with a secret in it, or with a `{key}` that the environment does not have."""
    variable = key_variable(name)
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"scorer `{scorer}`: `url` is {redacted(url)!r}; expected http:// or https://")
    if has_secret(url.replace("{key}", "")):
        raise ConfigError(
            f"scorer `{scorer}`: `url` {redacted(url)!r} has a password or key in it, which would be written into tables and reports; put "
            f"it into the environment variable {variable}, and {{key}} in its place if the server wants it in the address"
        )
    if "{key}" in url and not os.environ.get(variable):
        raise ConfigError(f"scorer `{scorer}`: `url` {url!r} has {{key}}, and the environment variable {variable} is not set")


def read_answer(send: Callable[[], bytes], read: Callable[[bytes], T], readings: int | None = None) -> T:
    """Return what `read` makes of the answer that `send` gets; an answer that it cannot read (BadAnswerError) is sent for again."""
    readings = READINGS if readings is None else readings
    for reading in range(1, readings + 1):
        try:
            return read(send())
        except BadAnswerError as error:
            if reading == readings:
                raise
            logger.warning("%s; asking again", error)
    raise AssertionError("`readings` is at least 1")


def post(url: str, body: Mapping[str, Any], timeout: float, key: str | None = None) -> bytes:
    """Send `body` as JSON and return the body of the answer.

    Raises NoAnswerError where there is none after RETRIES + 1 requests, RejectedError for status 400, and ConfigError for any other status;
    never with what the server says.
    """
    for retry in range(RETRIES + 1):
        try:
            return _posted(url, body, timeout, key)
        except _PassingError as error:
            if retry == RETRIES:
                # Not `from error`: the text of what caused it may hold the address with the key.
                raise NoAnswerError(f"{url} gives no answer ({error}), asked {RETRIES + 1} times") from None
            pause = BACKOFF * 2.0**retry if error.pause is None else min(error.pause, LONGEST_PAUSE)
            logger.warning("%s gives no answer (%s); asking again in %g s", url, error, pause)
            time.sleep(pause)
    raise AssertionError("the last request returns or raises")


def _posted(url: str, body: Mapping[str, Any], timeout: float, key: str | None) -> bytes:
    """Return the body of one answer. Raises _PassingError for a failure that may pass, ConfigError for any other."""
    headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {key}"} if key and "{key}" not in url else {})
    address, until = url.replace("{key}", key or ""), time.monotonic() + timeout
    try:
        with requests.post(address, json=body, headers=headers, timeout=timeout, allow_redirects=False, stream=True) as answer:
            if answer.status_code in PASSING or answer.status_code >= 500:
                raise _PassingError(f"status {answer.status_code}", _pause(answer.headers.get("Retry-After")))
            content = _body(answer.raw, until)
    except (requests.RequestException, HTTPError, OSError) as error:
        raise _PassingError(type(error).__name__) from None
    if answer.status_code == 400:
        raise RejectedError(f"{url} answers with status 400; expected 200", content)
    if answer.status_code != 200:
        why = ", a redirect, which is not followed" if 300 <= answer.status_code < 400 else ""
        raise ConfigError(f"{url} answers with status {answer.status_code}{why}; expected 200")
    if len(content) > MOST_BYTES:
        raise BadAnswerError(f"{url} answers with more than {MOST_BYTES:,} bytes; expected a short answer")
    return content


def _body(raw: BaseHTTPResponse, until: float) -> bytes:
    """Return what a server sends, at most one byte more than MOST_BYTES. Raises TimeoutError for an answer that is not whole by `until`."""
    content = b""
    while len(content) <= MOST_BYTES and (part := raw.read1(MOST_BYTES + 1 - len(content), decode_content=True)):
        if time.monotonic() > until:
            raise TimeoutError
        content += part
    return content


def _pause(header: str | None) -> float | None:
    """Return the seconds of a `Retry-After`, which is a number of them or a date; None where there is none, or another text."""
    try:
        return None if header is None else max(0.0, float(Retry().parse_retry_after(header)))
    except InvalidHeader:
        return None


def in_parallel(of: Callable[[U], T], items: Sequence[U], concurrency: int) -> list[T]:
    """Return `of` of every item, at most `concurrency` at a time.

    After the first error no further one is begun, those under way end, and it is raised; Ctrl-C waits for none of them.
    """
    if concurrency == 1 or len(items) < 2:
        return list(map(of, items))
    waiting = deque(enumerate(items))
    done: SimpleQueue[tuple[int, Any, BaseException | None]] = SimpleQueue()

    def work() -> None:
        while True:
            try:
                place, item = waiting.popleft()
            except IndexError:
                return
            try:
                done.put((place, of(item), None))
            except BaseException as error:  # raised again by whoever waits for it
                done.put((place, None, error))

    # Threads of a pool would be waited for when the process ends, a minute or more where a server hangs.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(concurrency, len(items)))]
    for thread in threads:
        thread.start()
    results: dict[int, Any] = {}
    try:
        for _ in items:
            place, result, error = done.get()
            if error is not None:
                raise error
            results[place] = result
    except BaseException as error:
        waiting.clear()
        for thread in threads if isinstance(error, Exception) else ():
            thread.join()
        raise
    return [results[place] for place in range(len(items))]
