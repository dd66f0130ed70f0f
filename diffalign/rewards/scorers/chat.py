"""Vision-language models that answer one question about pictures: on a server with an OpenAI-style chat endpoint, or on this machine."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from diffalign.core.documents import parse_json
from diffalign.core.errors import CheckpointError
from diffalign.data.colours import flattened
from diffalign.models.users.vlm import chat, checked, encoded
from diffalign.models.weights import UNREADABLE, weights_mark, whole
from diffalign.rewards.scorers.client import BadAnswerError, NoAnswerError, Post, RejectedError, key_variable, post, read_answer
from diffalign.rewards.scorers.network import frozen
from diffalign.rewards.scorers.wording import REFUSAL, Form, Reply, Wording

DTYPES = {"auto": "auto", "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TOP = 20  # likeliest first tokens, as many as OpenAI's API gives
FILTERED = ("content_filter", "content_policy_violation", "moderation_blocked")  # codes of a status 400 that refuses what is asked


@dataclass(frozen=True, slots=True)
class Question:
    """A text about PNG files, which come first."""

    text: str
    images: tuple[bytes, ...]


class Model(Protocol):
    """What answers questions."""

    identity: str
    """What tells its answers from another model's."""
    concurrency: int
    """How many calls it takes at once."""
    batch: int
    """How many questions a call has."""

    def answers(self, questions: Sequence[Question], wording: Wording) -> list[Reply | NoAnswerError]:
        """Return its answer to each question, and the error where there is none that the wording can read."""
        ...


class Endpoint:
    """A model behind `URL/chat/completions`, as vLLM, llama.cpp, Ollama and clouds serve it; `url` ends in /v1, or in the whole path.

    The key, if there is one, is in the environment variable of `name`.
    """

    batch = 1

    def __init__(self, *, url: str, model: str, name: str, max_tokens: int, timeout: float, concurrency: int, send: Post = post) -> None:
        path = "/chat/completions"
        self.url = url if "{key}" in url or url.rstrip("/").endswith(path) else url.rstrip("/") + path
        self.model, self.max_tokens, self.timeout, self.concurrency, self._send = model, max_tokens, timeout, concurrency, send
        self._key = key_variable(name)
        self.identity = f"{self.url} {model}"

    def answers(self, questions: Sequence[Question], wording: Wording) -> list[Reply | NoAnswerError]:
        """Return the answer to each question, or the error."""
        replies: list[Reply | NoAnswerError] = []
        for question in questions:
            try:
                replies.append(self._answer(question, wording))
            except NoAnswerError as error:
                replies.append(error)
        return replies

    def _answer(self, question: Question, wording: Wording) -> Reply:
        """Return the answer; one that cannot be read is asked for again, at a temperature above zero, for at zero it is the same again."""
        sent: list[None] = []

        def send() -> bytes:
            sent.append(None)
            body = self._body(question, wording.form) | ({"temperature": 0.5, "seed": len(sent)} if len(sent) > 1 else {})
            while True:
                try:
                    return self._send(self.url, body, self.timeout, os.environ.get(self._key))
                except RejectedError as error:
                    if b"max_completion_tokens" in error.body and "max_tokens" in body:  # what some models call it
                        body["max_completion_tokens"] = body.pop("max_tokens")
                    elif b"temperature" in error.body and "temperature" in body:  # models that think take no other than their own
                        del body["temperature"]
                    elif any(code.encode() in error.body for code in FILTERED):
                        return b'{"choices": [{"message": {"content": "", "refusal": "filtered"}}]}'
                    else:
                        raise

        def read(content: bytes) -> Reply:
            return readable(_reply(content, self.url), wording, self.url)

        return read_answer(send, read)

    def _body(self, question: Question, form: Form) -> dict[str, Any]:
        urls = [f"data:image/png;base64,{base64.b64encode(image).decode()}" for image in question.images]
        content = [{"type": "image_url", "image_url": {"url": url}} for url in urls] + [{"type": "text", "text": question.text}]
        body = {"model": self.model, "messages": [{"role": "user", "content": content}], "temperature": 0.0}
        return body | ({"max_tokens": 1, "logprobs": True, "top_logprobs": TOP} if form == "logprobs" else {"max_tokens": self.max_tokens})


def readable(reply: Reply, wording: Wording, where: str) -> Reply:
    """Return an answer that refuses, or that the wording can read, as it is. Raises BadAnswerError for any other."""
    if reply.refused or wording.read(reply) is not None:
        return reply
    if REFUSAL.match(reply.text):
        return Reply(reply.text, refused=True)
    if reply.cut and wording.form == "json":
        raise BadAnswerError(f"{where} gives an answer that was cut off; expected a whole one, which may take a larger `max_tokens`")
    expected = "its probabilities of the answers" if wording.form == "logprobs" else "the answer in the form that was asked for"
    raise BadAnswerError(f"{where} gives an answer that cannot be read; expected {expected}")


def _reply(content: bytes, url: str) -> Reply:
    """Return what a chat completion holds. Raises BadAnswerError for anything else."""
    answer: Any = parse_json(content, f"the answer of {url}", BadAnswerError)
    try:
        choice = answer["choices"][0]
        message, listed = choice["message"], (choice.get("logprobs") or {}).get("content") or []
        tokens = {one["token"]: float(one["logprob"]) for one in listed[0]["top_logprobs"]} if listed else None
        text = message.get("content") or ""
        end = choice.get("finish_reason")
        refused = bool(message.get("refusal")) or end == "content_filter"
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise BadAnswerError(f"{url} gives no chat completion; expected `choices` with a `message`") from None
    if not isinstance(text, str):
        raise BadAnswerError(f"{url} gives a message whose `content` is no text")
    return Reply(text, refused, tokens, cut=end == "length")


class LocalModel:
    """Any image-text-to-text model of transformers with a chat template, in memory; it answers greedily, `batch` questions at a time."""

    concurrency = 1

    def __init__(self, *, model: str, revision: str | None, dtype: str, max_tokens: int, batch: int, device: str) -> None:
        """Raises CheckpointError for a model that is missing, incomplete or takes no pictures."""
        try:
            _, self._processor = checked(model, revision)
            self._network = whole(AutoModelForImageTextToText, model, revision, dtype=DTYPES[dtype])
        except UNREADABLE as error:
            raise CheckpointError(f"{model}: no vision-language model can be loaded from here: {error}") from error
        frozen(self._network, device)
        self.model, self.batch, self._limit, self._device = model, batch, max_tokens, device
        self.identity = f"{model} {weights_mark(self._network)} {self._processor.chat_template}"

    @torch.no_grad()
    def answers(self, questions: Sequence[Question], wording: Wording) -> list[Reply | NoAnswerError]:
        """Return the answer to each question, all of them in one batch, or the error; asked again, greedy decoding would say the same."""
        images = [[flattened(Image.open(io.BytesIO(image))) for image in question.images] for question in questions]
        inputs = encoded(self._processor, [self._chat(question) for question in questions], images).to(self._device, self._network.dtype)
        replies: list[Reply | NoAnswerError] = []
        for reply in self._first_tokens(inputs) if wording.form == "logprobs" else self._written(inputs):
            try:
                replies.append(readable(reply, wording, self.model))
            except BadAnswerError as error:
                replies.append(error)
        return replies

    def _chat(self, question: Question) -> str:
        token = getattr(self._processor, "image_token", None)
        text = question.text.replace(token, "") if token else question.text  # the placeholder of an image is no prompt's to write
        return chat(self._processor, [*({"type": "image"} for _ in question.images), {"type": "text", "text": text}])

    def _first_tokens(self, inputs: Any) -> list[Reply]:
        """Return the likeliest first tokens of each answer; the logits are of the last position alone, and not touched by decoding."""
        logits = self._generated(inputs, 1, output_logits=True).logits[0].double()
        best = logits.log_softmax(dim=-1).topk(min(TOP, logits.shape[-1]))
        replies = []
        for places, values in zip(best.indices.tolist(), best.values.tolist(), strict=True):
            words = [self._processor.tokenizer.decode([place]) for place in places]
            tokens: dict[str, float] = {}
            for word, value in zip(words, values, strict=True):
                tokens.setdefault(word, value)  # the likeliest of those that are written alike
            replies.append(Reply(words[0], tokens=tokens))
        return replies

    def _written(self, inputs: Any) -> list[Reply]:
        tokens = self._generated(inputs, self._limit).sequences[:, inputs["input_ids"].shape[1] :]
        ends = torch.tensor(self._network.generation_config.eos_token_id or [], device=tokens.device).flatten()
        cut = (~torch.isin(tokens, ends).any(dim=1) & (tokens.shape[1] == self._limit)).tolist()
        texts = self._processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [Reply(text.strip(), cut=own) for text, own in zip(texts, cut, strict=True)]

    def _generated(self, inputs: Any, tokens: int, **kept: Any) -> Any:
        plain: dict[str, Any] = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}
        return self._network.generate(**inputs, max_new_tokens=tokens, return_dict_in_generate=True, **plain, **kept)
