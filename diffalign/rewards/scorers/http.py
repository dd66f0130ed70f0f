"""The scorer by a server that a user brings. It is used only where the user names it, see `core.trust`."""

from __future__ import annotations

import base64
import logging
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from PIL import Image

from diffalign.core.documents import parse_json
from diffalign.core.errors import ConfigError
from diffalign.data.pictures import encode_image
from diffalign.rewards.scorers.client import (
    BadAnswerError,
    NoAnswerError,
    Post,
    check_address,
    in_parallel,
    key_variable,
    post,
    read_answer,
)
from diffalign.rewards.scorers.function import CallableScorer
from diffalign.rewards.scorers.kept_answers import KeptAnswers, key_of

logger = logging.getLogger(__name__)
BATCH = 32  # images in one request
OnFailure = Literal["stop", "leave_out"]


def http(
    *,
    url: str,
    name: str,
    scale: str = "as the server says",
    timeout: float = 300.0,
    concurrency: int = 1,
    on_failure: OnFailure = "stop",
    cache: str | None = None,
) -> CallableScorer:
    """Return the scorer by a server, asked by POST for up to 32 images at a time, shared among `concurrency` requests at once.

    It is sent JSON {"prompts": [...], "images": [...]}, the images as PNG files in base64, and answers {"scores": [...]}, one number an
    image or null where it cannot judge one. Failures are met as `rewards.scorers.client` says; where they do not pass, scoring stops and
    what is scored is kept, or with `on_failure` leave_out the images of the request have no score, and the audit counts them. `cache` is
    a file of answers: what is in it is not asked again.

    A key is read from the environment, from `DIFFALIGN_KEY_` and the name in capitals (`DIFFALIGN_KEY_GREEN` for `green`), and sent as
    `Authorization: Bearer KEY`; a server that wants it in the address gets it where `url` has `{key}`. An address with a password or key
    in it is refused, for addresses are written into tables and reports. Raises ConfigError for another answer, or none in `timeout`
    seconds.
    """
    kept = None if cache is None else KeptAnswers(cache)
    return scorer_by(post, url=url, name=name, scale=scale, timeout=timeout, concurrency=concurrency, on_failure=on_failure, kept=kept)


def scorer_by(
    send: Post,
    *,
    url: str,
    name: str,
    scale: str,
    timeout: float,
    concurrency: int = 1,
    on_failure: OnFailure = "stop",
    kept: KeptAnswers | None = None,
) -> CallableScorer:
    """Return the scorer of `http` with another way to send."""
    check_address("http", url, name)
    if concurrency < 1:
        raise ConfigError(f"scorer `http`: `concurrency` is {concurrency}; expected at least 1")
    server = Server(send, url, timeout, key_variable(name), concurrency, on_failure, kept)
    return CallableScorer(name, scale, server.scores, url, audit=server.audit)


@dataclass(frozen=True, slots=True)
class Server:
    """Asks for the scores that are not kept yet; the audit counts images `answered`, `kept` from before, and those that `failed`."""

    send: Post
    url: str
    timeout: float
    key: str  # the environment variable that has it
    concurrency: int
    on_failure: OnFailure
    kept: KeptAnswers | None
    audit: Counter[str] = field(default_factory=Counter)

    def scores(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        """Return the score of each image, NaN where there is none."""
        sent = [(encode_image(image), prompt) for image, prompt in zip(images, prompts, strict=True)]
        scores: dict[int, float] = {}
        if self.kept is not None:
            before = ((place, self.kept.get(self._key_of(*one))) for place, one in enumerate(sent))
            scores = {place: score for place, score in before if score is not None}
            self.audit["kept"] += len(scores)
        missing = [place for place in range(len(sent)) if place not in scores]
        size = min(BATCH, math.ceil(len(missing) / self.concurrency)) or 1
        parts = [missing[start : start + size] for start in range(0, len(missing), size)]
        answers = in_parallel(lambda places: self._answer([sent[place] for place in places]), parts, self.concurrency)
        for places, answer in zip(parts, answers, strict=True):
            self.audit["failed" if answer is None else "answered"] += len(places)
            scores |= dict(zip(places, [math.nan] * len(places) if answer is None else answer, strict=True))
        return [scores[place] for place in range(len(sent))]

    def _answer(self, sent: Sequence[tuple[bytes, str]]) -> list[float] | None:
        """Return the scores of one request, kept as soon as they are there; None where it failed and is left out."""
        body = {"prompts": [prompt for _, prompt in sent], "images": [base64.b64encode(file).decode() for file, _ in sent]}
        try:
            scores = read_answer(
                lambda: self.send(self.url, body, self.timeout, os.environ.get(self.key)),
                lambda content: _scores(content, self.url, len(sent)),
            )
        except NoAnswerError as error:
            if self.on_failure == "stop":
                raise
            logger.warning("%s; %d images are left out", error, len(sent))
            return None
        if self.kept is not None:
            for one, score in zip(sent, scores, strict=True):
                if not math.isnan(score):
                    self.kept.put(self._key_of(*one), score)
        return scores

    def _key_of(self, file: bytes, prompt: str) -> str:
        return key_of(url=self.url, image=file, prompt=prompt)


def _scores(content: bytes, url: str, count: int) -> list[float]:
    """Return the numbers of an answer, NaN for null. Raises BadAnswerError for any other answer, without what it holds."""
    where = f"the answer of {url}"
    answer: Any = parse_json(content, where, BadAnswerError)
    if not isinstance(answer, dict) or "scores" not in answer:
        raise BadAnswerError(f'{url} answers without `scores`; expected {{"scores": [...]}}')
    scores = answer["scores"]
    if not isinstance(scores, list) or any(not isinstance(x, int | float | None) or isinstance(x, bool) for x in scores):
        raise BadAnswerError(f"{url} gives a {type(scores).__name__} that is no list of numbers")
    if len(scores) != count:
        raise BadAnswerError(f"{url} gives {len(scores)} scores for {count} images; expected one number each")
    return [math.nan if score is None else float(score) for score in scores]
