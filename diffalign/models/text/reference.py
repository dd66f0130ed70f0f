"""The reference's log-probabilities, computed once before training, for each token, and kept on disk beside the table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffalign.core.errors import ConfigError
from diffalign.core.processes import shares
from diffalign.core.progress import chunks
from diffalign.core.types import Reference
from diffalign.data.cache import Bank, filling, open_folder
from diffalign.models.text.likelihood import SequenceLikelihood
from diffalign.models.text.pairs import TextPairs


@dataclass(frozen=True, slots=True)
class Stored:
    """Token log-probabilities of all records, end to end."""

    tokens: Bank  # (sum of all lengths,) float32
    first: np.ndarray  # (records + 1,) where each record starts
    lengths: tuple[tuple[int, ...], ...]  # of each candidate

    def __call__(self, position: int) -> np.ndarray:
        """Return (K, L) float32 of one record, zero beyond each candidate's length."""
        lengths = np.asarray(self.lengths[position])
        values = np.zeros((len(lengths), lengths.max()), np.float32)
        values[np.arange(values.shape[1]) < lengths[:, None]] = self.tokens.read(self.places(position))
        return values

    def places(self, position: int) -> range:
        """Return which rows of the bank are a record's."""
        return range(int(self.first[position]), int(self.first[position + 1]))


def precomputed(
    pairs: TextPairs,
    likelihood: SequenceLikelihood,
    reference: Reference,
    root: Path,
    facts: dict[str, Any],
    device: torch.device,
    size: int,
) -> Stored:
    """Return the reference's log-probabilities of every record, by its position.

    Those that are not in the cache under `root` are computed first, `size` records at a time; a killed run goes on where it was.
    `facts` (plain values) say what they hang on besides the tokens: the model, its precision. Raises ConfigError if the objective needs
    whole distributions of the reference, which are not kept, and TableError for a stale or damaged cache.
    """
    if likelihood.distributions:
        raise ConfigError(
            "this objective reads the reference's whole distributions, which are not kept; set precompute_ref_log_probs: false"
        )
    folder = open_folder(root, "reference", {"tokens": pairs.fingerprint, "joint": likelihood.aggregation.joint} | facts)
    rows = (pairs[i, 0] for i in range(len(pairs)))
    lengths = tuple(tuple(likelihood.lengths(row["prompts"], row["completions"])) for row in rows)
    first = np.cumsum([0, *map(sum, lengths)], dtype=np.int64)
    stored = Stored(Bank(folder, "tokens", int(first[-1]), (), "float32"), first, lengths)
    done = Bank(folder, "records", len(pairs), (), "bool")

    def missing() -> list[int]:
        """Return the records to do, the longest first: what does not fit into memory fails at once."""
        return sorted(done.missing(range(len(pairs))), key=lambda i: -max(lengths[i]))

    with filling(folder):
        for own in shares(missing):
            for part in chunks(own, size, "reference log-probabilities"):
                batch = pairs.to_batch([pairs[i, 0] for i in part]).to(device)
                log_probs = reference.score(likelihood, batch).tokens.float().cpu().numpy()
                flat = [log_probs[b, k, :n] for b, i in enumerate(part) for k, n in enumerate(lengths[i])]
                stored.tokens.write([row for i in part for row in stored.places(i)], np.concatenate(flat))
                done.write(part, np.ones(len(part), bool))
    return stored
