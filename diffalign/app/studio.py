"""The personalised run behind the page Yours: loaded when it is first needed, and the pictures that its visitors choose from."""

from __future__ import annotations

import functools
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from diffalign.core.errors import ConfigError
from diffalign.core.runs import Run
from diffalign.data.pictures import decode_image, encode_image
from diffalign.data.questions import OpenPair
from diffalign.data.store import VoteStore
from diffalign.data.world.captions import caption
from diffalign.data.world.judge import read
from diffalign.data.world.scenes import SHAPES
from diffalign.data.world.words import in_words, leanings
from diffalign.infer.users.next_pair import information, posterior
from diffalign.models.backbones.folders import EMBEDDED, resolve

if TYPE_CHECKING:
    from torch import Tensor

    from diffalign.infer.users.personal import Personal
    from diffalign.infer.users.pipeline import UserPipeline

PROMPTS = tuple(caption({"shape": shape}) for shape in SHAPES)  # which leave everything but the shape to the taste
EACH = 6  # pictures of a prompt to choose from
STEPS = 20
FIRST_SEED = 1_000_000  # of the pictures that are shown; those to choose from count from 0
SURENESS = 8.0  # by which visitors are taken to be surer than the encoder says: of 0.1 to 30 the best on simulated ones, with 4 and 12
REMEMBERED = 8  # sets of prompts whose pictures for nobody are kept


@dataclass(frozen=True, slots=True)
class PoolPicture:
    """A picture to choose from: what the encoder sees of it, and what it shows, where that can be told."""

    prompt: str
    numbers: np.ndarray  # (H,), of no length where the encoder has none
    attributes: dict[str, str]


class Studio:
    """Draws for nobody and for tastes, one visitor at a time, and chooses what visitors are asked.

    Raises CheckpointError where `folder` is no finished run, ConfigError where the run is not personalised.
    """

    def __init__(self, folder: str | Path, store: VoteStore, prompts: Sequence[str] = PROMPTS) -> None:
        self.run = Run.open(resolve(str(folder)), expects="image")
        if not self.run.personal:
            raise ConfigError(f"{folder}: a run of {self.run.method}, which is not personalised; expected one of ppd")
        self.store, self.prompts = store, prompts
        self.name = str(folder)
        self._pool: dict[str, PoolPicture] = {}
        self._nobodys: dict[tuple[str, ...], list[Image.Image]] = {}
        self._prepared, self._lock = False, threading.Lock()

    @functools.cached_property
    def personal(self) -> Personal:
        """Return the run with its network, which takes seconds to load."""
        import torch  # the page is served before anybody needs it

        from diffalign.infer.load import load

        torch.set_flush_denormal(True)
        return load(self.run.folder, device="cuda" if torch.cuda.is_available() else "cpu")

    @property
    def in_world(self) -> bool:
        """Return whether the model draws the embedded world, whose pictures can be put into words."""
        return Path(self.run.base).name in EMBEDDED.values()

    def prepare(self) -> Generator[tuple[int, int]]:
        """Load the run and draw what visitors choose from, yielding (pictures that are there, how many there will be).

        Pictures that lie in the store are not drawn again, so that a call goes on where one was broken off.
        """
        if self._prepared:
            return
        prompts = tuple(dict.fromkeys([*self.prompts, *self.store.prompts()]))  # the latter perhaps of a server with others
        with self._lock:
            for number, prompt in enumerate(prompts):
                yield EACH * number, EACH * len(prompts)
                self._add(prompt)
            self._prepared = True

    def _add(self, prompt: str) -> None:
        """Draw the pictures of a prompt that are not in the store yet, and remember what all of them show."""
        kept = self.store.pictures(prompt, "")
        missing = [seed for seed in range(EACH) if seed not in kept]
        if missing:
            drawn = self._draw(self.personal.for_user(None), [prompt] * len(missing), missing)
            self.store.add_pictures(prompt, [encode_image(image) for image in drawn], seeds=missing)
            kept = self.store.pictures(prompt, "")
        files = list(kept.values())
        images = [decode_image(file.read_bytes(), file.name) for file in files]
        numbers = self.personal.numbers(images).double().numpy() if self.personal.sees_images else np.zeros((len(images), 0))
        for file, image, row in zip(files, images, numbers, strict=True):
            self._pool[file.name] = PoolPicture(prompt, row, read(image).attributes if self.in_world else {})

    def choices(self, voter: str) -> list[tuple[str, Path, Path]]:
        """Return a visitor's choices: prompt, file of the preferred picture and of the other one."""
        choices = []
        for vote in self.store.votes(voter):
            if vote.answer in ("left", "right"):
                question = self.store.question(vote.question)
                first, second = (picture.file for picture in question.pictures)
                choices.append((question.prompt, first, second) if vote.answer == "left" else (question.prompt, second, first))
        return choices

    def next_pair(self, voter: str, pairs: Sequence[OpenPair]) -> int:
        """Return the place of the pair whose answer is expected to tell most of a visitor's taste; 0 where the run cannot say (yet)."""
        files = [(pair.first.file.name, pair.second.file.name) for pair in pairs]
        if not self._prepared or not self.personal.sees_images:
            return 0
        chosen = [(first.name, second.name) for _, first, second in self.choices(voter)]
        belief = posterior(self._differences(chosen))
        return int(information(belief, self._differences(files)).argmax())

    def _differences(self, files: Sequence[tuple[str, str]]) -> np.ndarray:
        """Return (P, H) first picture's numbers less the second one's, times `SURENESS`."""
        width = len(next(iter(self._pool.values())).numbers)
        rows = [self._pool[first].numbers - self._pool[second].numbers for first, second in files]
        return SURENESS * np.array(rows).reshape(len(files), width)

    def taste(self, voter: str) -> Tensor | None:
        """Return the tokens (U, D) of a visitor's choices, None if there are none yet."""
        choices = self.choices(voter)
        return self.personal.for_user(choices).tokens if choices else None

    def read(self, file: Path) -> Tensor:
        """Return the tokens (U, D) in a file. Raises CheckpointError for a file that holds none of this run."""
        tokens = self.personal.for_user(file).tokens
        assert tokens is not None  # which only nobody has
        return tokens

    def forget(self, voter: str | None) -> None:
        """Withdraw all choices of a visitor."""
        while voter is not None and self.store.undo(voter) is not None:
            pass

    def pictures(self, person: UserPipeline, prompts: Sequence[str]) -> list[Image.Image]:
        """Return one picture a prompt for somebody, of the same noise for everybody."""
        with self._lock:
            return self._draw(person, prompts, range(FIRST_SEED, FIRST_SEED + len(prompts)))

    def nobodys(self, prompts: Sequence[str]) -> list[Image.Image]:
        """Return the pictures for nobody in particular, which are drawn once."""
        key = tuple(prompts)
        if key not in self._nobodys:
            images = self.pictures(self.personal.for_user(None), prompts)
            if len(self._nobodys) >= REMEMBERED:
                self._nobodys.clear()
            self._nobodys[key] = images
        return self._nobodys[key]

    def _draw(self, person: UserPipeline, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        from diffalign.infer.sample import draw
        from diffalign.infer.shards import drawn_as

        return draw(person, prompts, seeds, num_inference_steps=STEPS, **drawn_as(self.run))

    def words(self, voter: str) -> str:
        """Return in words what the run takes a visitor to like, by what it makes of the pictures to choose from; "" if it cannot say."""
        choices = self.choices(voter)
        if not (choices and self.in_world and self.personal.sees_images):
            return ""
        import torch

        pool = list(self._pool.values())
        liking = self.personal.liking(choices, torch.from_numpy(np.stack([one.numbers for one in pool])).float())
        return in_words(leanings([one.attributes for one in pool], liking.tolist(), [one.prompt for one in pool]))

    def words_of(self, images: Sequence[Image.Image], others: Sequence[Image.Image], prompts: Sequence[str]) -> str:
        """Return in words what pictures show rather than the others of the same prompts; "" if it cannot be told."""
        if not self.in_world:
            return ""
        attributes = [read(image).attributes for image in (*images, *others)]
        return in_words(leanings(attributes, [1.0] * len(images) + [0.0] * len(others), [*prompts, *prompts]))


def shipped(model: str) -> str | None:
    """Return the name of the personalised run that comes with an embedded model, None for a model that has none."""
    name = f"{model}/personal"
    return name if name in EMBEDDED and Run.is_in(resolve(name)) else None
