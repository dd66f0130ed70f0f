"""How far the meaning of a rewrite lies from its prompt, by a sentence encoder of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer

from diffalign.core.errors import CheckpointError
from diffalign.models.backbones.folders import resolve

BATCH = 64


class SentenceDistance:
    """Distances in [0, 1] of texts from prompts: one minus the cosine of their embeddings, as in Sem-DPO (2507.20133), not below zero.

    An embedding is the mean of the last hidden states over a text's tokens, as sentence-transformers' MiniLM and MPNet take it.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer

    @classmethod
    def from_pretrained(cls, name: str, device: str | torch.device = "cpu") -> SentenceDistance:
        """Return the distance by the encoder in a folder or on the hub. Raises CheckpointError if it does not load."""
        try:
            model: Any = AutoModel.from_pretrained(resolve(name), use_safetensors=True, dtype=torch.float32)
            return cls(model.to(device), AutoTokenizer.from_pretrained(resolve(name)))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{name}: does not load as a sentence encoder of transformers ({error})") from error

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Return unit vectors (N, D)."""
        rows = []
        for start in range(0, len(texts), BATCH):
            tokens = [self.tokenizer(text, truncation=True)["input_ids"] for text in texts[start : start + BATCH]]
            longest = max(map(len, tokens))
            device = self.model.device
            # The pad's own number is never looked at: its state is left out of the mean, and the mask hides it from the others.
            ids = torch.tensor([row + [0] * (longest - len(row)) for row in tokens], device=device)
            mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in tokens], device=device)
            states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
            rows.append((states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True))
        return functional.normalize(torch.cat(rows), dim=-1).cpu()

    def __call__(self, prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
        """Return the distance of each text from its prompt."""
        cosine = (self.embed(prompts) * self.embed(texts)).sum(dim=-1)
        return (1.0 - cosine).clamp(0.0, 1.0).tolist()
