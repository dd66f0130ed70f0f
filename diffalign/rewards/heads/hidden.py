"""What a reward head sees of texts: a language model's last hidden state at the end of an answer, and at the end of its prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffalign.core.errors import ConfigError
from diffalign.data.cache import fingerprint
from diffalign.data.records import Candidate, Record
from diffalign.models.text.network import load_language_model
from diffalign.models.text.template import Template

BATCH = 16  # texts at once


class HiddenEmbeds:
    """A causal language model's embeddings of texts; F = D is its width. A text too long for the model loses its beginning.

    Raises CheckpointError for a model that does not load.
    """

    def __init__(self, name: str, revision: str | None = None, device: torch.device | str = "cpu") -> None:
        model = load_language_model(name, torch.device(device), revision=revision)
        self._network: Any = model.network
        self._template = Template(model.tokenizer)
        config = self._network.config.get_text_config()
        self._longest = int(getattr(config, "max_position_embeddings", 0)) or 2**30
        self.image_width = self.prompt_width = int(config.hidden_size)
        self.max_tokens: int | None = None if self._longest == 2**30 else self._longest
        template = hashlib.sha256(str(model.tokenizer.chat_template).encode()).hexdigest()
        self.fingerprint = self.contents = fingerprint({"embeds": "hidden", "model": model.fingerprint(), "template": template})

    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """Raise ConfigError: a language model reads texts."""
        raise ConfigError(f"these rewards are of texts, by a language model's hidden states; found {len(images)} images")

    def prompts(self, prompts: Sequence[str]) -> Tensor:
        """Return (N, D) of N >= 1 prompts."""
        return self._states([self._template.prompt_ids(Record(p, p, ())) for p in prompts])

    def answers(self, records: Sequence[Record]) -> Tensor:
        """Return (N, F) of all candidates of records, in their order."""
        whole = []
        for encoded in self._template.encode(records):
            answers = zip(encoded.answers, encoded.completions, strict=True)
            whole += [np.concatenate([encoded.prompts[prompt], completion]) for prompt, completion in answers]
        return self._states(whole)

    def texts(self, texts: Sequence[str], prompts: Sequence[str]) -> Tensor:
        """Return (N, F) of answers to prompts."""
        return self.answers([Record(p, p, (Candidate(text=t),)) for t, p in zip(texts, prompts, strict=True)])

    @torch.no_grad()
    def _states(self, texts: Sequence[np.ndarray]) -> Tensor:
        return torch.cat([self._part(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)])

    def _part(self, texts: Sequence[np.ndarray]) -> Tensor:
        cut = [torch.from_numpy(ids[-self._longest :].astype(np.int64)) for ids in texts]
        ends = torch.tensor([len(ids) - 1 for ids in cut])
        ids = torch.nn.utils.rnn.pad_sequence(cut, batch_first=True).to(self._network.device)
        mask = (torch.arange(ids.shape[1]) <= ends[:, None]).long().to(ids.device)
        last = self._network(input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True).hidden_states[-1]
        return last[torch.arange(len(ends)), ends.to(last.device)].float().cpu()
