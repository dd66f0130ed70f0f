"""From a record to token ids: where the prompt ends, what the completion is, and which special tokens stand around them.

Texts (`Record.messages` empty): prompt and completion are joined as they are, without a space between, and the end-of-text token
follows unless the completion ends in it; an empty completion is that token alone. Conversations: the tokenizer's chat template, or the
one given, writes the prompt (with the generation prompt) and the whole; the completion is what the assistant's turn adds, with the end
that the template writes. A candidate with a prompt of its own answers that instead of the text or of the last turn.

The prompt, and the whole of prompt and completion, are tokenised separately; the completion begins at the first token in which they
differ (TRL 1.16, DPOTrainer). Usually that is where the prompt ends. Where tokens merge across the boundary, or a template writes the
prompt differently when nothing follows, the last tokens of the prompt are not in the whole: they are left out (`Encoded.lost`), for all
candidates of a prompt alike, so that a record keeps one prompt.

Beyond TRL: a beginning-of-text token never stands twice, a tokenizer's own closing token is not added to one that is there, and a
prompt of no tokens becomes the beginning-of-text token (end-of-text where there is none), so that the first token is scored as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from diffalign.core.errors import ConfigError, RecordError
from diffalign.data.records import Candidate, Message, Record

Written = tuple[str, str]  # the prompt, and the prompt with a candidate


@dataclass(frozen=True, slots=True)
class Encoded:
    """A record's token ids."""

    prompts: tuple[np.ndarray, ...]  # (P,) int32 each, P > 0; one, unless candidates have prompts of their own
    answers: tuple[int, ...]  # K: which of the prompts each completion answers
    completions: tuple[np.ndarray, ...]  # K of (n,) int32, n > 0
    lost: int = 0  # tokens at the prompt's end that the tokenised whole does not have


def read_chat_template(path: str) -> str:
    """Return the Jinja template in a file. Raises ConfigError if it cannot be read or is empty."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"chat_template: {path} cannot be read ({error}); expected a Jinja file") from error
    if not text.strip():
        raise ConfigError(f"chat_template: {path} is empty; expected a Jinja template of conversations")
    return text


@dataclass(frozen=True, slots=True)
class Template:
    """Writes records for a language model."""

    tokenizer: Any  # of transformers; it needs no padding token

    def encode(self, records: Sequence[Record]) -> list[Encoded]:
        """Return the ids of each record's candidates.

        Raises ConfigError for a tokenizer without end-of-text token or, where a record is a conversation, without chat template;
        RecordError for a record that has no texts, or that the template refuses.
        """
        written = [self._written(record) for record in records]
        ids: list[dict[str, np.ndarray]] = [{}, {}]
        for chat in (False, True):
            own = (pairs for record, pairs in zip(records, written, strict=True) if bool(record.messages) == chat)
            texts = list(dict.fromkeys(text for pairs in own for pair in pairs for text in pair))
            ids[chat] = dict(zip(texts, self._ids(texts, special=not chat), strict=True))
        return [self._split(record, pairs, ids[bool(record.messages)]) for record, pairs in zip(records, written, strict=True)]

    def prompt_ids(self, record: Record) -> np.ndarray:
        """Return the ids (P,) int32 that a model goes on from to answer a record, which needs no candidates; errors as `encode`."""
        text = self._prompt(record, None)
        (ids,) = self._ids([text], special=not record.messages)
        return self._opened(ids, record)

    @property
    def _name(self) -> str:
        return self.tokenizer.name_or_path or "this model"

    def _written(self, record: Record) -> list[Written]:
        if any(c.text is None for c in record.candidates) or not record.candidates:
            raise RecordError(
                f"{record.source}: this record is of kind {record.kind}; a language model is trained on candidates that are texts"
            )
        return [(self._prompt(record, c.prompt), self._whole(record, c)) for c in record.candidates]

    def _prompt(self, record: Record, own: str | None) -> str:
        if record.messages:
            return self._render(record, _history(record, own), generation=True)
        return record.prompt if own is None else own

    def _whole(self, record: Record, candidate: Candidate) -> str:
        text = candidate.text or ""
        if record.messages:
            return self._render(record, (*_history(record, candidate.prompt), Message("assistant", text)), generation=False)
        end = self.tokenizer.eos_token
        if end is None:
            raise ConfigError(
                f"the tokenizer of {self._name} has no end-of-text token (eos_token), which has to follow every completion; set it"
            )
        return self._prompt(record, candidate.prompt) + text + ("" if text.endswith(end) else end)

    def _render(self, record: Record, history: Sequence[Message], *, generation: bool) -> str:
        if self.tokenizer.chat_template is None:
            raise ConfigError(
                f"{record.source} is a conversation, and the tokenizer of {self._name} has no chat template; give one as a Jinja file "
                "(--chat_template)"
            )
        turns = [{"role": message.role, "content": message.content} for message in history]
        try:
            return self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation)
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(f"the chat template is no Jinja template (line {error.lineno}: {error})") from error
        except jinja2.TemplateError as error:
            roles = ", ".join(message.role for message in history)
            raise RecordError(f"{record.source}: the chat template refuses this conversation of {roles} ({error})") from error

    def _ids(self, texts: Sequence[str], *, special: bool) -> Iterator[np.ndarray]:
        """Yield the ids (n,) int32 of texts; with `special` what the tokenizer puts before them, but not what it puts after."""
        if not texts:
            return
        closed = special and self.tokenizer("a")["input_ids"][-1:] == [self.tokenizer.eos_token_id]
        for ids in self.tokenizer(list(texts), add_special_tokens=special, verbose=False)["input_ids"]:
            yield np.asarray(ids[:-1] if closed else ids, np.int32)

    def _split(self, record: Record, written: Sequence[Written], ids: dict[str, np.ndarray]) -> Encoded:
        ends: dict[str, int] = {}
        for prompt, whole in written:
            ends[prompt] = min(ends.get(prompt, len(ids[prompt])), _common(ids[prompt], ids[whole]))
        completions = tuple(ids[whole][ends[prompt] :] for prompt, whole in written)
        if not all(map(len, completions)):
            raise RecordError(f"{record.source}: the chat template writes nothing for the answer; expected the assistant's turn")
        lost = max(len(ids[prompt]) - end for prompt, end in ends.items())
        prompts, names = tuple(self._opened(ids[prompt][:end], record) for prompt, end in ends.items()), list(ends)
        return Encoded(prompts, tuple(names.index(prompt) for prompt, _ in written), completions, lost)

    def _opened(self, prompt: np.ndarray, record: Record) -> np.ndarray:
        """Return a prompt's ids with at least one token, and one beginning of text at most."""
        start, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        if len(prompt) == 0:
            if start is None and end is None:
                raise RecordError(f"{record.source}: the prompt has no tokens, and the tokenizer no token that begins or ends texts")
            return np.asarray([end if start is None else start], np.int32)
        others = np.flatnonzero(prompt != start) if start is not None else np.zeros(1, int)
        repeats = int(others[0]) if len(others) else len(prompt)
        return prompt[max(repeats - 1, 0) :]


def _history(record: Record, own: str | None) -> tuple[Message, ...]:
    """Return the conversation, its last turn replaced by a candidate's own prompt."""
    return record.messages if own is None else (*record.messages[:-1], Message(record.messages[-1].role, own))


def _common(first: np.ndarray, second: np.ndarray) -> int:
    """Return how many leading ids two arrays share."""
    length = min(len(first), len(second))
    different = np.flatnonzero(first[:length] != second[:length])
    return int(different[0]) if len(different) else length
