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
        return self.mode == "keep_end" or max(map(len, record.prompts)) < self.max_length

    def cut(self, record: Encoded, begin: int | None) -> Encoded:
        """Return an admitted record with what fits; `begin` is the token that begins texts, which is never cut."""
        room = max(self.max_length - max(map(len, record.completions)), 1)
        prompts = tuple(self._shortened(prompt, room, begin) for prompt in record.prompts)
        left = [self.max_length - len(prompts[i]) for i in record.answers]
        completions = tuple(ids[:n] for ids, n in zip(record.completions, left, strict=True))
        return replace(record, prompts=prompts, completions=completions)

    def _shortened(self, prompt: np.ndarray, room: int, begin: int | None) -> np.ndarray:
        if self.mode == "keep_start" or len(prompt) <= room:
            return prompt
        head = int(prompt[0] == begin)
        return np.concatenate([prompt[:head], prompt[len(prompt) - room + head :]])
