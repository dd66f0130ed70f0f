"""Which open pair a voter is asked about next: any, the one that fits best what was asked before, or the one that tells most.

What tells most is judged by what the votes so far say of a few numbers of a picture (the colours of its edge and of what stands out, where
and how large that is), or, where models are compared, of the models themselves; see `diffalign.infer.users.next_pair`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from diffalign.data.pictures import decode_image
from diffalign.data.questions import Choose, OpenPair, ShownPicture
from diffalign.data.store import VoteStore
from diffalign.infer.users.next_pair import Belief, information, posterior

Strategy = Literal["balanced", "random", "active"]
SIDE = 32  # pixels of a side, at which a picture is looked at
PLACES = np.linspace(-1.0, 1.0, SIDE)  # of its columns and rows
LUMINANCE = np.array([0.299, 0.587, 0.114])
COUNT = 10  # numbers of a picture

Numbers = Callable[[Sequence[ShownPicture]], np.ndarray]  # (N, H) of N pictures


@dataclass(slots=True)
class ActiveChoice:
    """Chooses the pair whose answer is expected to tell most, for a voter by this voter's votes (`pooled`: by everybody's)."""

    store: VoteStore
    numbers: Numbers
    pooled: bool = False
    _beliefs: dict[str | None, tuple[tuple[int, int], Belief]] = field(default_factory=dict)  # by voter, with how much they come from

    def __call__(self, voter: str) -> Choose:
        """Return the chooser of a voter."""
        return functools.partial(self._most_telling, None if self.pooled else voter)

    def _most_telling(self, voter: str | None, pairs: Sequence[OpenPair]) -> int:
        differences = self._differences([(pair.first, pair.second) for pair in pairs])
        return int(np.argmax(information(self._belief(voter, differences.shape[1]), differences)))

    def _belief(self, voter: str | None, width: int) -> Belief:
        """Return what the decided votes of a voter, or of everybody, say; ties say nothing here."""
        decided = self.store.decided(voter)
        size = (len(decided), width)
        if self._beliefs.get(voter, ((-1, -1), None))[0] != size:
            self._beliefs[voter] = (size, posterior(self._differences(decided).reshape(size)))
        return self._beliefs[voter][1]

    def _differences(self, pairs: Sequence[tuple[ShownPicture, ShownPicture]]) -> np.ndarray:
        numbers = self.numbers([picture for pair in pairs for picture in pair])
        return numbers[0::2] - numbers[1::2]


def of_colours(pictures: Sequence[ShownPicture]) -> np.ndarray:
    """Return (N, 10) of each picture: the colour of its edge, the colour, place and size of what stands out from it, and their contrast.

    They are scaled so that each varies by about one among pictures of a model.
    """
    return np.array([_colours(picture.file) for picture in pictures]).reshape(-1, COUNT)


@functools.lru_cache(maxsize=20_000)
def _colours(file: Path) -> np.ndarray:
    image = decode_image(file.read_bytes(), str(file), least=(SIDE, SIDE)).resize((SIDE, SIDE))
    pixels = np.asarray(image, dtype=np.float64) / 255.0
    edge = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]]).mean(axis=0)
    weight = np.square(pixels - edge).sum(axis=-1) + 1e-6  # of a pixel, by how far it stands out
    share = weight / weight.sum()
    colour = np.einsum("xy,xyc->c", share, pixels)
    across, down = share.sum(axis=0) @ PLACES, share.sum(axis=1) @ PLACES
    size = 1.0 / np.square(share).sum() / share.size  # the share of the picture that stands out, if all of it did so alike
    contrast = abs((colour - edge) @ LUMINANCE)
    return np.array([*(edge - 0.5) * 3.0, *(colour - 0.5) * 3.0, across * 4.0, down * 4.0, size * 6.0, contrast * 3.0])


@dataclass(frozen=True, slots=True)
class ModelNumbers:
    """Numbers of which the model that drew a picture is one, and the others zero: what is believed of them are the models' strengths."""

    store: VoteStore

    def __call__(self, pictures: Sequence[ShownPicture]) -> np.ndarray:
        """Return (N, M) for M models."""
        place = {name: number for number, name in enumerate(self.store.models())}
        return np.eye(len(place))[[place[picture.model] for picture in pictures]]


def chooser(strategy: Strategy, store: VoteStore, *, of_models: bool = False) -> Callable[[str], Choose] | None:
    """Return what chooses a voter's next pair, or None where the store's order is enough; `of_models` where models are compared."""
    if strategy != "active":
        return None
    return ActiveChoice(store, ModelNumbers(store), pooled=True) if of_models else ActiveChoice(store, of_colours)
