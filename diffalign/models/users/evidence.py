"""What is known of a training user when one of their records is learned from: never that record, its table row, or its pictures.

Image features and hidden states are computed once and kept on disk beside the table, keyed by the network that made them.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffalign.core.documents import read_json
from diffalign.core.errors import ConfigError
from diffalign.core.processes import shares
from diffalign.core.progress import chunks
from diffalign.data.attributes import attributes_of, levels, quantiles_of
from diffalign.data.cache import Bank, filling, open_folder
from diffalign.data.pictures import decode_image
from diffalign.data.users import Users
from diffalign.data.view import View
from diffalign.models.features import Features
from diffalign.models.users.choices import Choice
from diffalign.models.users.encoders import LEVELS, Sizes
from diffalign.models.users.settings import PairsSettings, SliderSettings, VlmSettings
from diffalign.models.users.vlm import VlmStates, cached

logger = logging.getLogger(__name__)
FEW = 16  # pairs


class ChoicesEvidence:
    """A random few of the user's other pairs in random order, as image features: "user" (S, 2, F) and "user_mask" (S,).

    The mask is zero, and the user nobody, for a record that shares a picture with all other pairs of its user.
    """

    def __init__(self, view: View, users: Users, features: Features, settings: PairsSettings, root: Path) -> None:
        self.view, self.users, self.shots = view, users, settings.max_shots
        self.noise = settings.hidden if settings.variational else 0
        counts = [batch.column("candidates").value_lengths().to_numpy() for batch in view.table.batches()]
        self.first = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
        folder = open_folder(root, "features", {"table": view.table.fingerprint, "features": features.fingerprint})
        self.bank = Bank(folder, "features", int(self.first[-1]), (features.width,), "float32")
        self.sizes = Sizes(users.names, features.width, source=features.source)
        self._fill(features)
        _warn(users.without_evidence(), len(view))

    def __call__(self, position: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """Return the evidence of one record, up to `max_shots` pairs, and "user_query" (2, F), the record's own.

        As many as there are: what the denoiser learns to draw for a taste does not depend on how many pairs told of it, and many tell
        it more clearly.
        """
        return self._drawn(position, self.shots, rng)

    def few(self, position: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """Return the same with one to sixteen pairs, log-uniformly: what the encoder itself is fitted to."""
        return self._drawn(position, int(np.exp(rng.random() * np.log(min(self.shots, FEW) + 1.0))), rng)

    def _drawn(self, position: int, most: int, rng: np.random.Generator) -> dict[str, Tensor]:
        others = self.users.evidence_positions(position)
        count = min(len(others), most)
        seen = self.read([position, *rng.choice(others, count, replace=False).tolist()])
        known, mask = torch.zeros(self.shots, *seen.shape[1:]), torch.zeros(self.shots)
        known[:count], mask[:count] = seen[1:], 1.0
        noise = {"user_noise": torch.from_numpy(rng.standard_normal(self.noise, dtype=np.float32))} if self.noise else {}
        return {"user": known, "user_mask": mask, "user_query": seen[0], **noise}

    def read(self, positions: Sequence[int]) -> Tensor:
        """Return features (N, 2, F) of the pairs at `positions`, the preferred image's first."""
        entries = [self.view.entries[position] for position in positions]
        places = [int(self.first[entry.row]) + i for entry in entries for i in entry.order]
        return torch.from_numpy(self.bank.read(places)).unflatten(0, (len(entries), 2))

    def _fill(self, features: Features) -> None:
        wanted = [(row, int(self.first[row]) + i, i) for row, i in self.view.entries.candidates]

        def missing() -> list[tuple[int, int, int]]:
            places = set(self.bank.missing([place for _, place, _ in wanted]))
            return sorted({job for job in wanted if job[1] in places})

        with filling(self.bank.folder):
            for own in shares(missing):
                for part in chunks(own, 32, "cache user features"):
                    records = {row: self.view.table[row] for row, _, _ in part}
                    images = [
                        decode_image(records[row].candidates[i].image or b"", f"{records[row].source}, candidate {i}") for row, _, i in part
                    ]
                    self.bank.write([place for _, place, _ in part], features(images).numpy())


class StatesEvidence:
    """Hidden states of a vision-language model that has read one chunk of the user's other pairs: "user" (R, F).

    They are zero, and the user nobody, for a record that shares a picture with every chunk of its user.
    """

    def __init__(self, view: View, users: Users, states: VlmStates, settings: VlmSettings, root: Path) -> None:
        self.users, self.sizes = users, Sizes(users.names, states.width, states.rows, states.source)
        folder = open_folder(root, "users", {"table": view.table.fingerprint, "model": states.fingerprint})
        self.chunks: list[list[tuple[np.ndarray, Tensor]]] = [[] for _ in users.names]
        jobs = [(user, chunk) for user in range(len(users)) for chunk in _chunks(users, user, settings)]

        def states_of(user: int, chunk: np.ndarray) -> Tensor:
            return cached(states, folder, users.names[user], [choice(view, int(position)) for position in chunk])

        with filling(folder):
            for own in shares(lambda: jobs):
                for part in chunks(own, 1, "read users' pairs"):
                    states_of(*part[0])
        for user, chunk in jobs:
            self.chunks[user].append((chunk, states_of(user, chunk)))
        self.nobody = torch.zeros(states.rows, states.width)
        _warn(sum(not self._others(position) for position in range(len(view))), len(view))

    def __call__(self, position: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """Return the states of a random chunk that has nothing of the record's row and none of its pictures."""
        others = self._others(position)
        return {"user": others[int(rng.integers(len(others)))] if others else self.nobody}

    def _others(self, position: int) -> list[Tensor]:
        own = self.chunks[self.users.owner[position]]
        return [states for chunk, states in own if not self.users.overlaps(position, chunk).any()]


def _warn(alone: int, records: int) -> None:
    """Say how many records are learned from without knowing their user."""
    if alone:
        logger.warning(
            "%d of %d records share a picture with all that their user has chosen otherwise, which would tell their label; they are "
            "learned from as those of nobody",
            *(alone, records),
        )


def _chunks(users: Users, user: int, settings: VlmSettings) -> list[np.ndarray]:
    """Return a user's positions, one a row, shuffled and cut into whole chunks, at most `per_user` of them."""
    positions = users.positions[user]
    single = positions[np.unique(users.rows[positions], return_index=True)[1]]
    shuffled = np.random.default_rng([users.seed, 2, user]).permutation(single)
    whole = len(shuffled) // settings.shots
    return list(shuffled[: whole * settings.shots].reshape(whole, settings.shots)[: settings.per_user])


def choice(view: View, position: int) -> Choice:
    """Return a record of a view, preferred image first, as a choice."""
    record = view[position]
    first, second = (decode_image(c.image or b"", f"{record.source}, candidate {i}") for i, c in enumerate(record.candidates))
    return Choice(record.prompt, first, second)


class IndexEvidence:
    """Which of the training users it is: "user", an index."""

    def __init__(self, users: Users) -> None:
        self.users, self.sizes = users, Sizes(users.names)

    def __call__(self, position: int, rng: np.random.Generator) -> dict[str, Tensor]:  # noqa: ARG002  # nothing is drawn
        """Return the index of the record's user."""
        return {"user": torch.tensor(int(self.users.owner[position]))}


class VectorEvidence:
    """Numbers that describe the user, from elsewhere: "user" (F,)."""

    def __init__(self, users: Users, vectors: Tensor, source: str = "") -> None:
        self.users, self.vectors, self.sizes = users, vectors, Sizes(users.names, vectors.shape[1], source=source)

    def __call__(self, position: int, rng: np.random.Generator) -> dict[str, Tensor]:  # noqa: ARG002  # nothing is drawn
        """Return the numbers of the record's user."""
        return {"user": self.vectors[self.users.owner[position]]}


class SliderEvidence:
    """The scores of a record's first candidate, of a pair the preferred one, as levels of the training's quantiles: "user" (A,).

    Each is NaN, its slider off, for a share `dropout` of the records, drawn anew each time.
    """

    def __init__(self, view: View, settings: SliderSettings) -> None:
        scores = attributes_of(view, settings.attributes)
        quantiles = quantiles_of(scores, LEVELS).astype(np.float32)
        self.quantiles, self.dropout = torch.from_numpy(quantiles), settings.dropout
        self.values = levels(scores, quantiles).astype(np.float32)
        self.sizes = Sizes(source=hashlib.sha256(repr(tuple(settings.attributes)).encode() + quantiles.tobytes()).hexdigest()[:32])

    def __call__(self, position: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """Return the values of the sliders that are on."""
        values = self.values[position].copy()
        values[rng.random(len(values)) < self.dropout] = np.nan
        return {"user": torch.from_numpy(values)}


def read_profiles(path: str, names: tuple[str, ...]) -> list[str]:
    """Return each user's text from a JSON file {user: text}. Raises ConfigError for a file or a user that is missing."""
    texts = _read(path, "profiles", "{user: text}")
    for name in names:
        if not isinstance(texts.get(name), str) or not texts[name].strip():
            raise ConfigError(f"{path}: has no text for user {name!r}; expected {{user: text}} with every user of the training")
    return [texts[name] for name in names]


def read_vectors(path: str, names: tuple[str, ...]) -> Tensor:
    """Return each user's numbers (users, F) from a JSON file {user: [number, ...]}. Raises ConfigError where they do not fit together."""
    numbers = _read(path, "vectors", "{user: [number, ...]}")
    lengths = {len(numbers[name]) if isinstance(numbers.get(name), list) else 0 for name in names}
    if len(lengths) != 1 or 0 in lengths:
        raise ConfigError(f"{path}: expected equally many numbers for every user of the training; found {sorted(lengths)}")
    try:
        vectors = torch.tensor([numbers[name] for name in names], dtype=torch.float32)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: expected {{user: [number, ...]}} ({error})") from error
    if vectors.dim() != 2 or not vectors.isfinite().all():
        raise ConfigError(f"{path}: expected {{user: [number, ...]}}; found lists in a list, or numbers that are not finite")
    return vectors


def contents(path: str) -> str:
    """Return a hash of a file about users, which was read before."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:32]


def _read(path: str, key: str, expected: str) -> dict[str, Any]:
    try:
        content = read_json(Path(path))
    except ConfigError as error:
        raise ConfigError(f"`user_encoder`: `{key}` {path} cannot be read ({error}); expected a JSON file {expected}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"`user_encoder`: `{key}` {path} holds a {type(content).__name__}; expected {expected}")
    return content
