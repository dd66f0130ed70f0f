"""Rewrites that a language model makes of prompts, and their tables: each text ranked by the picture that is drawn from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from diffalign.core.runs import Run
from diffalign.data.records import Candidate, Message, Record
from diffalign.infer.load import load
from diffalign.infer.text.rewriter import Rewriter
from diffalign.models.text.network import load_language_model

KEPT = "rewrites"  # of a record's `meta`: the texts that its pictures were drawn from, as JSON
Distance = Callable[[Sequence[str], Sequence[str]], list[float]]  # prompts, texts -> in [0, 1], 0 for the same meaning


@dataclass(frozen=True, slots=True)
class Writing:
    """A language model that writes a text for each prompt and seed, at temperature 1."""

    writer: Rewriter
    max_new_tokens: int

    @classmethod
    def open(cls, name: str, max_new_tokens: int, device: torch.device) -> Writing:
        """Return the writer of a folder, a hub id or a finished run. Raises CheckpointError where it is no causal language model."""
        if Run.is_in(name):
            return cls(load(name, device=device), max_new_tokens)
        model = load_language_model(name, device)
        return cls(Rewriter(model.network, model.tokenizer), max_new_tokens)

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        """Return the texts. One with nothing in it is the prompt itself, for a picture must be drawn from something."""
        drawn = self.writer.sampled(prompts, seeds, max_new_tokens=self.max_new_tokens)
        return [one.text or prompt for one, prompt in zip(drawn, prompts, strict=True)]

    def kept(self, record: Record, texts: Sequence[str]) -> Record:
        """Return a record of pictures with the texts they were drawn from; its prompt is a turn of a user where the writer has turns."""
        turns = (Message("user", record.prompt),) if self.writer.conversational else ()
        return replace(record, messages=turns, meta=dict(record.meta) | {KEPT: json.dumps(texts)})


def as_texts(record: Record, model: str, distance: Distance | None = None) -> Record:
    """Return what was drawn from rewrites as a record of these texts, with the scores and ranks of their pictures; equal texts once.

    With `distance` each candidate has its score `distance`, the one where lower is better, which the transform `semantic_weight` reads
    (Sem-DPO, 2507.20133).

    >>> meta = {"rewrites": '["a big star", "a star", "a star"]'}
    >>> drawn = Record("0", "a star", tuple(Candidate(image=b"", rank=rank) for rank in (1.0, 2.0, 2.0)), meta=meta)
    >>> [(c.text, c.rank) for c in as_texts(drawn, "writer").candidates]
    [('a big star', 1.0), ('a star', 2.0)]
    """
    texts = json.loads(record.meta[KEPT])
    far = [None] * len(texts) if distance is None else distance([record.prompt] * len(texts), texts)
    candidates: dict[str, Candidate] = {}
    for pictured, text, gap in zip(record.candidates, texts, far, strict=True):
        scores = dict(pictured.scores) | ({} if gap is None else {"distance": gap})
        candidates.setdefault(text, replace(pictured, image=None, text=text, scores=scores, model=model))
    meta = {name: value for name, value in record.meta.items() if name != KEPT}
    return replace(record, candidates=tuple(candidates.values()), meta=meta)
