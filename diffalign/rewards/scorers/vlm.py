"""The scorer by a vision-language model: a mark for each picture, or verdicts on every two pictures of a prompt, each in both orders.

A verdict is the mean of the two orders, so that swapping two pictures swaps it: chance(a, b) = (p + 1 - q) / 2, where p is the chance
that a is better when it is shown first, and q the chance that b is when it is. Orders that contradict each other are one half, and are
counted as a flip. A picture's score is then its mean chance against the others of its prompt: Pref-GRPO's win fraction (2508.20751), which
asks in one order and counts an answer that cannot be read as one half; here it is left out.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from PIL import Image

from diffalign.core.errors import ConfigError
from diffalign.data.pictures import encode_image
from diffalign.rewards.base import check_arguments
from diffalign.rewards.scorers.chat import Endpoint, LocalModel, Model, Question
from diffalign.rewards.scorers.client import BadAnswerError, check_address, in_parallel
from diffalign.rewards.scorers.function import CallableScorer
from diffalign.rewards.scorers.http import OnFailure
from diffalign.rewards.scorers.kept_answers import KeptAnswers, key_of
from diffalign.rewards.scorers.people import pairs_of
from diffalign.rewards.scorers.wording import Form, Reply, Wording, wording
from diffalign.rewards.scorers.wording import Protocol as Shown

logger = logging.getLogger(__name__)
Pair = tuple[bytes, bytes, str]  # two PNG files and their prompt


@dataclass(frozen=True, slots=True)
class Judge:
    """Asks a model what is not kept yet, keeps its answers, and counts what became of the questions.

    What is counted, of questions: those `answered`, and `kept` from before; of these those that the model `refused`; those whose answer
    could not be read (`unread`), and that `failed`. Of `pairs`: those whose two orders contradict each other (`flips`), `ties` in both
    orders, those `open` for want of an answer, and in how many orders the first and the second picture won (`first_won`, `second_won`).
    """

    model: Model
    wording: Wording
    kept: KeptAnswers
    on_failure: OnFailure = "stop"
    comparisons: int | None = None
    audit: Counter[str] = field(default_factory=Counter)

    def marks(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        """Return a mark for each image (N,), NaN where there is none."""
        questions = [Question(self.wording.question(prompt), (encode_image(image),)) for image, prompt in zip(images, prompts, strict=True)]
        values = self._values(questions)
        return [float("nan") if (mark := values[question]) is None else mark for question in questions]

    def chances(self, first: Sequence[Image.Image], second: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        """Return the chance (N,) that each first image is better than the second, by verdicts in both orders; NaN where one is missing."""
        check_arguments(first, prompts)
        check_arguments(second, prompts)
        files = [(encode_image(a), encode_image(b), prompt) for a, b, prompt in zip(first, second, prompts, strict=True)]
        return np.array([self._chance(*orders) for orders in self._orders(files)])

    def win_fractions(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        """Return the mean chance of each image (N,) against the others of its prompt; NaN where no verdict on it is there.

        With `comparisons` an image meets so many others, or one more, in a ring.
        """
        files = [encode_image(image) for image in images]
        groups = {prompt: [place for place, own in enumerate(prompts) if own == prompt] for prompt in prompts}
        met = [
            (group[a], group[b], prompt)
            for prompt, group in groups.items()
            for a, b in sorted(pairs_of(len(group), self.comparisons or len(group)))
        ]
        fared: list[list[float]] = [[] for _ in files]
        orders = self._orders([(files[a], files[b], prompt) for a, b, prompt in met])
        for (a, b, _), (one, other) in zip(met, orders, strict=True):
            if not np.isnan(chance := self._chance(one, other)):
                fared[a].append(chance)
                fared[b].append(1.0 - chance)
        return [float(np.mean(own)) if own else float("nan") for own in fared]

    def _orders(self, pairs: Sequence[Pair]) -> list[tuple[float | None, float | None]]:
        """Return for each pair the chance that the first is better, when it is shown first and when it is shown second.

        Equal files tie without a question.
        """
        questions = [
            [Question(self.wording.question(prompt), shown) for shown in ((a, b), (b, a))] if a != b else [] for a, b, prompt in pairs
        ]
        values = self._values([question for both in questions for question in both])
        verdicts: list[tuple[float | None, float | None]] = []
        for both in questions:
            if both:
                one, other = (values[question] for question in both)
                verdicts.append((one, None if other is None else 1.0 - other))
            else:
                verdicts.append((0.5, 0.5))
        return verdicts

    def _chance(self, one: float | None, other: float | None) -> float:
        """Return the mean of the two orders, both as chances of the same image, and count what they say."""
        self.audit["pairs"] += 1
        if one is None or other is None:
            self.audit["open"] += 1
            return float("nan")
        self.audit["flips"] += (one - 0.5) * (other - 0.5) < 0.0
        self.audit["first_won"] += (one > 0.5) + (other < 0.5)
        self.audit["second_won"] += (one < 0.5) + (other > 0.5)
        self.audit["ties"] += one == other == 0.5
        return (one + other) / 2.0

    def _values(self, questions: Sequence[Question]) -> dict[Question, float | None]:
        """Return what is read of the answer to every question, equal ones asked once; None where there is none."""
        once = list(dict.fromkeys(questions))
        replies: dict[Question, Reply | None] = {}
        for question in once:
            if (answer := self.kept.get(self._key(question))) is not None:
                replies[question] = Reply(**answer)
        self.audit["kept"] += len(replies)
        new = [question for question in once if question not in replies]
        batches = [new[start : start + self.model.batch] for start in range(0, len(new), self.model.batch)]
        for batch, own in zip(batches, in_parallel(self._replies, batches, self.model.concurrency), strict=True):
            for question, (reply, outcome) in zip(batch, own, strict=True):
                self.audit[outcome] += 1
                replies[question] = reply
        values: dict[Question, float | None] = {}
        for question in once:
            reply = replies[question]
            self.audit["refused"] += reply is not None and reply.refused
            values[question] = None if reply is None or reply.refused else self.wording.read(reply)
        return values

    def _key(self, question: Question) -> str:
        return key_of(model=self.model.identity, form=self.wording.form, text=question.text, images=question.images)

    def _replies(self, questions: Sequence[Question]) -> list[tuple[Reply | None, str]]:
        """Return the answer to each question, None where there is none that can be read, and what the audit calls that."""
        outcomes: list[tuple[Reply | None, str]] = []
        for question, reply in zip(questions, self.model.answers(questions, self.wording), strict=True):
            if isinstance(reply, Reply):
                self.kept.put(self._key(question), asdict(reply))
                outcomes.append((reply, "answered"))
            elif isinstance(reply, BadAnswerError):
                logger.warning("%s; it is left out", reply)
                outcomes.append((None, "unread"))
            elif self.on_failure == "stop":
                raise reply
            else:
                logger.warning("%s; the question is left out", reply)
                outcomes.append((None, "failed"))
        return outcomes


def vlm(
    *,
    model: str,
    url: str | None = None,
    name: str = "vlm",
    protocol: Shown = "pointwise",
    template: str = "aspects",
    aspects: Sequence[str] | None = None,
    answer: Form = "json",
    comparisons: int | None = None,
    concurrency: int = 8,
    on_failure: OnFailure = "stop",
    cache: str | None = None,
    max_tokens: int = 512,
    timeout: float = 120.0,
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    revision: str | None = None,
    device: str = "cpu",
) -> CallableScorer:
    """Return the scorer by a vision-language model: of transformers, or with `url` on a server with an OpenAI-style chat endpoint.

    `model` is a folder or hub id, or what the server calls it; `url` its address up to /v1, whose key the environment has in
    `DIFFALIGN_KEY_` and `name` in capitals. `template`, `protocol`, `answer` and `aspects` are those of `wording`; of K pictures each is
    compared with `comparisons` others, or all. `concurrency` questions are asked at once, of a local model as one batch. Of a question
    without any answer scoring stops, with what is done kept in `cache`, or it is left out (`on_failure`); a picture whose answer cannot
    be read, or that the model refuses, has no score. Raises ConfigError for settings that are none, CheckpointError for a local model that
    does not load.
    """
    settings = {"template": template, "protocol": protocol, "answer": answer, "aspects": aspects, "url": url, "name": name}
    words = check_wording(settings | {"concurrency": concurrency, "max_tokens": max_tokens, "comparisons": comparisons})
    if url is None:
        network: Model = LocalModel(model=model, revision=revision, dtype=dtype, max_tokens=max_tokens, batch=concurrency, device=device)
    else:
        network = Endpoint(url=url, model=model, name=name, max_tokens=max_tokens, timeout=timeout, concurrency=concurrency)
    judge = Judge(network, words, KeptAnswers(cache), on_failure, comparisons)
    score, compare, unit = (judge.marks, None, "mark") if protocol == "pointwise" else (judge.win_fractions, judge.chances, "share")
    about: dict[str, Any] = {"licence": "the model's own", "revision": revision, "unit": unit, "audit": judge.audit, "compare": compare}
    about |= {"together": compare is not None}
    return CallableScorer(name, f"{words.scale}, by {model}", score, model, **about)


def check_wording(constants: Mapping[str, Any]) -> Wording:
    """Return what is asked by a scorer with all the constants of `vlm`. Raises ConfigError where they are out of range, or no address."""
    for constant in ("concurrency", "max_tokens", "comparisons"):
        if constants[constant] is not None and constants[constant] < 1:
            raise ConfigError(f"scorer `vlm`: `{constant}` is {constants[constant]}; expected at least 1")
    if constants["url"] is not None:
        check_address("vlm", constants["url"], constants["name"])
    return wording(**{name: constants[name] for name in ("template", "protocol", "answer", "aspects")})
