"""People as a scorer: pictures are put into a vote store, which `diffalign app` shows, and the votes on them are the scores."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from diffalign.core.errors import ConfigError, TrainingError
from diffalign.core.progress import progress
from diffalign.data.pictures import encode_image
from diffalign.data.store import SUFFIXES, VoteStore
from diffalign.rewards.base import check_arguments

MODEL = "online"  # as whose pictures a store has them
PAGE = "diffalign app --dataset_name {path} --ahead 0 --repeats 0"  # which shows what waits, and nothing else
POLL = 1.0  # seconds between looks at the store


@dataclass(frozen=True, slots=True)
class PeopleScorer:
    """Scores a picture by the share of its comparisons, with others of its prompt that are scored beside it, that people decided for it.

    Pictures are known by their bytes: those that are asked for again, as after a kill, are not shown twice, and votes on them count.
    """

    name: str
    path: Path
    comparisons: int
    timeout: float
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)
    scale: str = "share in [0, 1] of its comparisons that people decided for the picture, ties counting one half"
    licence: str = "the voters' own"
    max_tokens: int | None = None
    revision: str | None = None
    unit: str | None = "share"

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        """Return scores (N,) once people have voted, one half for a picture without another one. Raises TrainingError if nobody votes."""
        return self.begin(images, prompts)()

    def begin(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Callable[[], np.ndarray]:
        """Put pictures up for votes and return what waits for them."""
        check_arguments(images, prompts)
        files = [encode_image(image) for image in images]
        names = [hashlib.sha256(file).hexdigest() for file in files]  # as a store names them
        groups = {
            prompt: {name: file for name, file, own in zip(names, files, prompts, strict=True) if own == prompt} for prompt in prompts
        }
        with VoteStore(self.path) as store:
            for prompt, group in groups.items():
                store.add_pictures(prompt, list(group.values()), model=MODEL, pairs=pairs_of(len(group), self.comparisons))

        def scores() -> np.ndarray:
            shares = self._wait({prompt: list(group) for prompt, group in groups.items()})
            return np.array([shares[prompt, name] for name, prompt in zip(names, prompts, strict=True)])

        return scores

    def _wait(self, groups: Mapping[str, Sequence[str]]) -> dict[tuple[str, str], float]:
        """Return the score of each (prompt, picture) once all have been compared."""
        total, done, last = sum(map(len, groups.values())), 0, time.monotonic()
        with VoteStore(self.path) as store, progress(total=total, desc=f"{self.name}: judge", unit="pictures") as bar:
            while True:
                fared = {(prompt, name): own for prompt, group in groups.items() for name, own in _fared(store, prompt, group).items()}
                needed = {prompt: 2 * len(pairs_of(len(group), self.comparisons)) // len(group) for prompt, group in groups.items()}
                compared = sum(len(own) >= needed[prompt] for (prompt, _), own in fared.items())
                if compared != done:
                    bar.update(compared - done)
                    done, last = compared, time.monotonic()
                if compared == total:
                    return {key: float(np.mean(own)) if own else 0.5 for key, own in fared.items()}
                if time.monotonic() - last >= self.timeout:
                    raise TrainingError(
                        f"{self.path}: {total - compared} of {total} pictures wait for votes, and none was judged in {self.timeout:g} s; "
                        f"vote on the page of `{PAGE.format(path=self.path)}`, and go on with --resume_from_checkpoint latest"
                    )
                self.sleep(POLL)


def people(*, path: str, name: str = "people", comparisons: int = 2, timeout: float = 86_400.0) -> PeopleScorer:
    """Return the scorer by votes of people: `path` is the vote store, which is made if there is none.

    Each picture is compared with `comparisons` others of its prompt: K pictures make K comparisons / 2 questions of two. Where the page
    shows four to be ranked (`--mode ranking`), K is a multiple of four, and `comparisons` at most 3. After `timeout` seconds without a
    judged picture the run ends with a message. Raises ConfigError for a path that is none of a vote store.
    """
    if Path(path).suffix not in SUFFIXES:
        raise ConfigError(f"scorer `people`: `path` is {path!r}; expected a vote store, a file that ends in {', '.join(SUFFIXES)}")
    if comparisons < 1 or timeout < 0.0:
        raise ConfigError(f"scorer `people`: found `comparisons` {comparisons}, `timeout` {timeout:g}; expected at least 1, and at least 0")
    return PeopleScorer(name, Path(path), comparisons, timeout)


def pairs_of(count: int, comparisons: int) -> Collection[tuple[int, int]]:
    """Return which of `count` pictures are compared, so that each is with `comparisons` others, or one more where that cannot be.

    They stand in a ring, and each is compared with the next ones; so all are compared with each other over some of them.

    >>> sorted(pairs_of(4, 2)), len(pairs_of(4, 3))
    ([(0, 1), (0, 3), (1, 2), (2, 3)], 6)
    """
    steps = range(1, min(math.ceil(comparisons / 2), count // 2) + 1)
    ring = (sorted((place, (place + step) % count)) for step in steps for place in range(count))
    return dict.fromkeys((first, second) for first, second in ring)


def _fared(store: VoteStore, prompt: str, group: Collection[str]) -> dict[str, list[float]]:
    """Return how each picture of a group fared in each of its comparisons within it: 1 won, 0 lost, between them where votes differ."""
    chances: dict[tuple[str, str], list[float]] = {}
    for first, second, chance in store.compared(prompt):
        if first.stem in group and second.stem in group:
            chances.setdefault((first.stem, second.stem), []).append(chance)
            chances.setdefault((second.stem, first.stem), []).append(1.0 - chance)
    return {name: [float(np.mean(own)) for (first, _), own in chances.items() if first == name] for name in group}
