"""The similarity of a pair's hidden states, by which pairs that would make the preferred answer less likely are known beforehand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from diffalign.core.progress import chunks
from diffalign.core.types import TextBatch
from diffalign.data.records import Record
from diffalign.models.text.layout import lay_out
from diffalign.models.text.likelihood import Read
from diffalign.models.text.pairs import TextPairs
from diffalign.objectives.metrics import ches


def scored(pairs: TextPairs, read: Read, model: Any, device: torch.device, batch_size: int = 8) -> Iterator[Record]:
    """Yield the records of pairs with the scores `ches` and `ln_ches` on their first candidate, as the transform `lowest` reads them.

    They are written for a new table: the view should do no more than `pairs` and `orient`. Records beyond the limit are left out.
    """
    for part in chunks(list(range(len(pairs))), batch_size, "compare hidden states"):
        similarities = zip(
            *(x.tolist() for x in similarity(read, model, pairs.to_batch([pairs[i, 0] for i in part]).to(device))), strict=True
        )
        for position, (plain, normalised) in zip(part, similarities, strict=True):
            record = pairs.view[position]
            first, *others = record.candidates
            scored_candidate = replace(first, scores={**first.scores, "ches": plain, "ln_ches": normalised})
            yield replace(record, candidates=(scored_candidate, *others))


@torch.no_grad()
def similarity(read: Read, model: Any, batch: TextBatch) -> tuple[Tensor, Tensor]:
    """Return CHES and its length-normalised form, (B,) each, of candidates 0 and 1 under a model in eval mode."""
    rows = lay_out(batch, share_prompt=False, padding_free=False)
    hidden = read(model, rows, whole=False, hidden=True).hidden
    if hidden is None:
        raise ValueError("the model was asked for its hidden states and gave none")
    # What predicts a token of the answer: from the prompt's last token to the answer's last but one.
    own = hidden.flatten(0, 1)[rows.completion.scored].float()
    count, candidates, longest = rows.completion.shape
    sums = own.new_zeros(count * candidates, own.shape[-1]).index_add(0, rows.completion.places // longest, own)
    return ches(sums.unflatten(0, (count, candidates)), rows.completion.lengths)
