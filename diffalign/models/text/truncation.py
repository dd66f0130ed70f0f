"""Which records fit into `max_length` tokens, prompt and completion together, and what is cut of those that are longer.

keep_start (as TRL 1.16): a record is left out if a prompt alone fills `max_length`; completions lose their end.
keep_end: prompts lose their beginning, except for the beginning-of-text token, as far as the record's longest completion needs; if one
token of them is not enough, completions lose their end. TRL instead cuts each sequence on its own, the beginning-of-text token first,
and in long completions everything that they answer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from diffalign.core.errors import ConfigError
from diffalign.models.text.template import Encoded
from diffalign.models.text.tokens import PROMPT, Tokens


@dataclass(frozen=True, slots=True)
class Layout:
    """How long the texts of B records are, once they are cut."""

    prompts: np.ndarray  # (P,) tokens of all prompts
    completions: np.ndarray  # (C,) tokens of all completions
    prompt_of: np.ndarray  # (C,) int64: which of all prompts each completion answers
    counts: np.ndarray  # (B,) completions of each record
    shorter: int  # records that lose tokens


@dataclass(frozen=True, slots=True)
class Limit:
    """How long a prompt and its completion may be. Raises ConfigError if they cannot have a token each."""

    max_length: int = 1024
    mode: Literal["keep_start", "keep_end"] = "keep_start"

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise ConfigError(f"max_length is {self.max_length}; expected at least 2, one token of the prompt and one of the completion")

    def admits(self, record: Encoded) -> bool:
        """Return whether a completion can be kept of every candidate."""
        return bool(self.admitted(np.array([max(map(len, record.prompts))]))[0])

    def admitted(self, longest: np.ndarray) -> np.ndarray:
        """Return (R,) whether records are admitted whose longest prompts have so many tokens (R,)."""
        return np.full(len(longest), True) if self.mode == "keep_end" else longest < self.max_length

    def cut(self, record: Encoded, begin: int | None) -> Encoded:
        """Return an admitted record with what fits; `begin` is the token that begins texts, which is never cut."""
        room = max(self.max_length - max(map(len, record.completions)), 1)
        prompts = tuple(self._shortened(prompt, room, begin) for prompt in record.prompts)
        left = [self.max_length - len(prompts[i]) for i in record.answers]
        completions = tuple(ids[:n] for ids, n in zip(record.completions, left, strict=True))
        return replace(record, prompts=prompts, completions=completions)

    def layout(self, tokens: Tokens, places: np.ndarray, others: np.ndarray | None = None) -> Layout:
        """Return how long `cut` leaves the texts of the records at `places` (B,), without a look at any.

        With `others` (B,) each record has one completion more to its first prompt, of the record there: the first one of a record at an
        even position, else the second if there is one.
        """
        counts = np.diff(tokens.first)[places]
        starts = np.cumsum(counts) - counts
        rows = np.repeat(tokens.first[places] - starts, counts) + np.arange(counts.sum())
        owner, kinds, whole = np.repeat(np.arange(len(places)), counts), tokens.kinds[rows], tokens.lengths[rows]
        is_prompt = kinds == PROMPT
        longest = np.maximum.reduceat(np.where(is_prompt, 0, whole), starts)
        own, answered = np.flatnonzero(~is_prompt), (starts[owner] + kinds)[~is_prompt]  # the row of each completion, and of its prompt
        if others is not None:
            which = np.minimum(np.arange(len(places)) % 2, tokens.completions[others] - 1)
            more = tokens.lengths[tokens.first[others + 1] - tokens.completions[others] + which]
            longest, ends = np.maximum(longest, more), np.cumsum(tokens.completions[places])
            firsts = answered[ends - tokens.completions[places]]
            completions, answered = np.insert(whole[own], ends, more), np.insert(answered, ends, firsts)
        else:
            completions = whole[own]
        room = np.maximum(self.max_length - longest, 1)[owner]
        prompts = whole if self.mode == "keep_start" else np.minimum(whole, room)
        fitting = np.minimum(completions, self.max_length - prompts[answered])
        number = tokens.completions[places] + (others is not None)
        of = np.repeat(np.arange(len(places)), number)
        shorter = np.unique(np.concatenate([owner[is_prompt & (prompts < whole)], of[fitting < completions]]))
        prompt_of = (np.cumsum(is_prompt) - 1)[answered]
        return Layout(prompts[is_prompt], fitting, prompt_of.astype(np.int64), number, len(shorter))

    def _shortened(self, prompt: np.ndarray, room: int, begin: int | None) -> np.ndarray:
        if self.mode == "keep_start" or len(prompt) <= room:
            return prompt
        head = int(prompt[0] == begin)
        return np.concatenate([prompt[:head], prompt[len(prompt) - room + head :]])
