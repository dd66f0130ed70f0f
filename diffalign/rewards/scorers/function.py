"""Scorers that a user brings: a Python function, or a server."""

from __future__ import annotations

import base64
import importlib
import importlib.util
import json
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from diffalign.core.errors import ConfigError
from diffalign.data.records import encode_image

BATCH = 32  # images in one request
Post = Callable[[str, Mapping[str, Any], float], Any]  # (url, JSON, seconds) -> JSON


@dataclass(frozen=True, slots=True)
class Asked:
    """A scorer by a function of images and prompts, whose answer is checked."""

    name: str
    scale: str
    function: Callable[[Sequence[Image.Image], Sequence[str]], Any]
    where: str
    batch: int | None = None
    licence: str = "the user's own"
    max_tokens: int | None = None
    revision: str | None = None

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        """Return scores (N,). Raises ConfigError for an answer that is not one number an image."""
        step = self.batch or max(1, len(images))
        rows = [np.empty(0)]
        for start in range(0, len(images), step):
            part = slice(start, start + step)
            rows.append(self._checked(self.function(images[part], prompts[part]), len(images[part])))
        return np.concatenate(rows)

    def _checked(self, answer: Any, count: int) -> np.ndarray:
        try:
            found = np.asarray(answer, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{self.where} gives no list of numbers ({error})") from error
        if found.shape != (count,):
            raise ConfigError(f"{self.where} gives scores of shape {found.shape} for {count} images; expected one number each")
        return found


def function(*, path: str, name: str | None = None, scale: str = "as the function says") -> Asked:
    """Return the scorer by a Python function (images, prompts) -> one number an image; it may leave out by NaN.

    `path` is `module:function`, or `file.py:function`; the score has the function's name unless `name` is given. The function is called
    with RGB images as PIL opens them. Raises ConfigError if there is no such function.
    """
    module_name, _, attribute = path.rpartition(":")
    found = getattr(_module(module_name, path), attribute, None)
    if not callable(found):
        raise ConfigError(f"scorer `function`: there is no function `{attribute}` in {module_name}")
    return Asked(name or attribute, scale, found, f"the function {path}")


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
    except (ImportError, OSError, SyntaxError) as error:
        raise ConfigError(f"scorer `function`: {name} cannot be imported ({error})") from error
    return module


def http(*, url: str, name: str, scale: str = "as the server says", timeout: float = 300.0) -> Asked:
    """Return the scorer by a server, asked by POST for up to 32 images at a time.

    It is sent JSON {"prompts": [...], "images": [...]}, the images as PNG files in base64, and answers {"scores": [...]}, one number an
    image or null where it cannot judge one. Raises ConfigError for another answer, or none in `timeout` seconds.
    """
    return asked_by(post, url=url, name=name, scale=scale, timeout=timeout)


def asked_by(send: Post, *, url: str, name: str, scale: str, timeout: float) -> Asked:
    """Return the scorer of `http` with another way to send."""
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"scorer `http`: `url` is {url!r}; expected http:// or https://")

    def ask(images: Sequence[Image.Image], prompts: Sequence[str]) -> Any:
        files = [base64.b64encode(encode_image(image)).decode() for image in images]
        answer = send(url, {"prompts": list(prompts), "images": files}, timeout)
        if not isinstance(answer, dict) or "scores" not in answer:
            raise ConfigError(f'{url} answers without `scores`; expected {{"scores": [...]}}')
        return answer["scores"]

    return Asked(name, scale, ask, url, batch=BATCH)


def post(url: str, body: Mapping[str, Any], timeout: float) -> Any:
    """Send `body` as JSON and return the JSON of the answer. Raises ConfigError where there is none."""
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310  # the caller has looked at the scheme
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:  # noqa: S310  # as above
            return json.loads(answer.read())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{url} gives no answer ({error})") from error
