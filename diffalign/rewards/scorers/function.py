"""Scorers that a user brings: a Python function, or a server. They are used only where the user names them, see `core.trust`."""

from __future__ import annotations

import base64
import importlib
import importlib.util
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import requests
from PIL import Image
from urllib3.exceptions import HTTPError, MaxRetryError, ProtocolError
from urllib3.util import Retry

from diffalign.core.documents import parse_json
from diffalign.core.errors import ConfigError, shortened
from diffalign.core.redaction import has_secret, redacted
from diffalign.data.pictures import encode_image
from diffalign.rewards.base import check_arguments

logger = logging.getLogger(__name__)
BATCH = 32  # images in one request
MOST_BYTES = 1_000_000  # of an answer
PASSING = (408, 425, 429, 500, 502, 503, 504)  # statuses after which the same request may succeed
RETRIES, BACKOFF = 5, 0.5  # seconds before a retry: 0, 1, 2, 4, 8, or what the server asks for
Post = Callable[[str, Mapping[str, Any], float, str | None], bytes]  # (url, JSON, seconds, key) -> body of the answer


@dataclass(frozen=True, slots=True)
class CallableScorer:
    """A scorer by a function of images and prompts, whose answer is checked."""

    name: str
    scale: str
    function: Callable[[Sequence[Image.Image], Sequence[str]], Any]
    where: str
    batch: int | None = None
    licence: str = "the user's own"
    max_tokens: int | None = None
    revision: str | None = None
    unit: str | None = None

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        """Return scores (N,). Raises ConfigError for an answer that is not one number an image."""
        check_arguments(images, prompts)
        step = self.batch or max(1, len(images))
        rows = [np.empty(0)]
        for start in range(0, len(images), step):
            part = slice(start, start + step)
            rows.append(self._checked(self.function(images[part], prompts[part]), len(images[part])))
        return np.concatenate(rows)

    def _checked(self, answer: Any, count: int) -> np.ndarray:
        try:
            scores = np.asarray(answer, dtype=np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"{self.where} gives a {type(answer).__name__} that is no list of numbers") from error
        if scores.shape != (count,):
            raise ConfigError(f"{self.where} gives scores of shape {scores.shape} for {count} images; expected one number each")
        if np.isinf(scores).any():
            raise ConfigError(f"{self.where} gives {scores[np.isinf(scores)][0]} for image {int(np.isinf(scores).argmax())} of {count}")
        return scores


def function(*, path: str, name: str | None = None, scale: str = "as the function says") -> CallableScorer:
    """Return the scorer by a Python function (images, prompts) -> one number an image; it may leave out by NaN.

    `path` is `module:function`, or `file.py:function`; the score has the function's name unless `name` is given. The function is called
    with RGB images as PIL opens them. Raises ConfigError if there is no such function, and where it fails.
    """
    module_name, _, attribute = path.rpartition(":")
    called = getattr(_module(module_name, path), attribute, None)
    if not callable(called):
        raise ConfigError(f"scorer `function`: there is no function `{attribute}` in {module_name}")

    def score(images: Sequence[Image.Image], prompts: Sequence[str]) -> Any:
        try:
            return called(images, prompts)
        except Exception as error:
            raise ConfigError(f"the function {path} fails with {type(error).__name__}: {shortened(str(error))}") from error

    return CallableScorer(name or attribute, scale, score, f"the function {path}")


def _module(name: str, path: str) -> ModuleType:
    if not name:
        raise ConfigError(f"scorer `function`: `path` is {path!r}; expected module:function, or file.py:function")
    try:
        if not name.endswith(".py"):
            return importlib.import_module(name)
        spec = importlib.util.spec_from_file_location(Path(name).stem, name)
        if spec is None or spec.loader is None:
            raise ImportError(f"no Python file at {name}")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"scorer `function`: {name} cannot be imported ({type(error).__name__}: {shortened(str(error))})") from error
    return module


def http(*, url: str, name: str, scale: str = "as the server says", timeout: float = 300.0) -> CallableScorer:
    """Return the scorer by a server, asked by POST for up to 32 images at a time.

    It is sent JSON {"prompts": [...], "images": [...]}, the images as PNG files in base64, and answers {"scores": [...]}, one number an
    image or null where it cannot judge one. A failure that may pass (no connection, an answer that is cut off or late, status 429 or
    5xx) is retried five times, with growing pauses; redirects are not followed.

    A key is read from the environment, from `DIFFALIGN_KEY_` and the name in capitals (`DIFFALIGN_KEY_GREEN` for `green`), and sent as
    `Authorization: Bearer KEY`; a server that wants it in the address gets it where `url` has `{key}`. An address with a password or key
    in it is refused, for addresses are written into tables and reports. Raises ConfigError for another answer, or none in `timeout`
    seconds.
    """
    return scorer_by(post, url=url, name=name, scale=scale, timeout=timeout)


def scorer_by(send: Post, *, url: str, name: str, scale: str, timeout: float) -> CallableScorer:
    """Return the scorer of `http` with another way to send."""
    variable = "DIFFALIGN_KEY_" + re.sub(r"\W", "_", name).upper()
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"scorer `http`: `url` is {redacted(url)!r}; expected http:// or https://")
    if has_secret(url.replace("{key}", "")):
        raise ConfigError(
            f"scorer `http`: `url` {redacted(url)!r} has a password or key in it, which would be written into tables and reports; put it "
            f"into the environment variable {variable}, and {{key}} in its place if the server wants it in the address"
        )
    if "{key}" in url and not os.environ.get(variable):
        raise ConfigError(f"scorer `http`: `url` {url!r} has {{key}}, and the environment variable {variable} is not set")

    def ask(images: Sequence[Image.Image], prompts: Sequence[str]) -> Any:
        files = [base64.b64encode(encode_image(image)).decode() for image in images]
        body = send(url, {"prompts": list(prompts), "images": files}, timeout, os.environ.get(variable))
        answer = parse_json(body, f"the answer of {url}")
        if not isinstance(answer, dict) or "scores" not in answer:
            raise ConfigError(f'{url} answers without `scores`; expected {{"scores": [...]}}')
        return answer["scores"]

    return CallableScorer(name, scale, ask, url, batch=BATCH)


def post(url: str, body: Mapping[str, Any], timeout: float, key: str | None = None) -> bytes:
    """Send `body` as JSON and return the body of the answer. Raises ConfigError where there is none, never with what the server says."""
    retry = Retry(RETRIES, backoff_factor=BACKOFF, allowed_methods=None)
    while True:
        try:
            return _posted(url, body, timeout, key)
        except (requests.RequestException, HTTPError, OSError) as error:
            try:
                retry = retry.increment("POST", url, error=ProtocolError(type(error).__name__))
            except MaxRetryError:
                # Not `from error`: its text holds the address with the key.
                raise ConfigError(f"{url} gives no answer ({_reason(error)}), asked {RETRIES + 1} times") from None
            logger.warning("%s gives no answer (%s); asking again in %g s", url, _reason(error), retry.get_backoff_time())
            retry.sleep()


def _posted(url: str, body: Mapping[str, Any], timeout: float, key: str | None) -> bytes:
    """Return the body of one answer. Raises an error of requests or urllib3 for a failure that may pass, ConfigError for any other."""
    headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {key}"} if key and "{key}" not in url else {})
    address = url.replace("{key}", key or "")
    with requests.post(address, json=body, headers=headers, timeout=timeout, allow_redirects=False, stream=True) as answer:
        if answer.status_code in PASSING:
            raise requests.HTTPError(f"status {answer.status_code}")
        if answer.status_code != 200:
            why = ", a redirect, which is not followed" if 300 <= answer.status_code < 400 else ""
            raise ConfigError(f"{url} answers with status {answer.status_code}{why}; expected 200")
        content = answer.raw.read(MOST_BYTES + 1, decode_content=True)
    if len(content) > MOST_BYTES:
        raise ConfigError(f"{url} answers with more than {MOST_BYTES:,} bytes; expected a number an image")
    return content


def _reason(error: Exception) -> str:
    """Return what went wrong, without the address."""
    return str(error) if type(error) is requests.HTTPError else type(error).__name__
