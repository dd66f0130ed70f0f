"""Models side by side: drawn at the same seeds, voted on blind, and rated by those votes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from diffalign.core.errors import ConfigError
from diffalign.core.runs import Run
from diffalign.data.pictures import decode_image
from diffalign.data.store import PROBABILITIES, CastVote, VoteStore
from diffalign.evaluate.ratings import Rating, Vote, bradley_terry


@dataclass(slots=True)
class Arena:
    """The pictures of several models in a vote store of their own, and the process that draws them."""

    store: VoteStore
    log: Path
    drawing: subprocess.Popen[bytes] | None = None
    _rated: tuple[list[CastVote], list[Rating]] = field(default_factory=lambda: ([], []))  # the last ratings, and their votes

    def draw(self, models: Sequence[str], prompts: Sequence[str], pairs: int) -> None:
        """Start to draw until so many pairs wait that nobody has seen; of no prompts, of those that `diffalign votes draw` takes.

        Raises ConfigError for fewer than two models, for one that does not draw, and while it draws.
        """
        if self.busy:
            raise ConfigError("it is drawing; wait until it has ended")
        if len(set(models)) < 2:
            raise ConfigError("choose two models at least")
        for model in models:
            if Run.is_in(model):
                Run.open(model, expects="image")
        command = [
            sys.executable,
            "-m",
            "diffalign.cli",
            "votes",
            "draw",
            "--dataset_name",
            str(self.store.path),
            "--images_per_prompt",
            "1",
        ]
        command += ["--ahead", str(pairs), "--pretrained_model_name_or_path", *models, *(["--prompts", *prompts] if prompts else [])]
        with self.log.open("wb") as log:
            self.drawing = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # noqa: S603, a list, and no shell

    @property
    def busy(self) -> bool:
        """Return whether it is drawing."""
        return self.drawing is not None and self.drawing.poll() is None

    @property
    def trouble(self) -> str | None:
        """Return the last line of a drawing that failed; None of one that did not."""
        if self.drawing is None or not self.drawing.poll():
            return None
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line for line in reversed(lines) if line.strip()), "it ended without a word")

    def ratings(self) -> list[Rating]:
        """Return every model's rating by the votes on pairs of two models, best first; of no such votes, nothing."""
        cast_votes = self.store.votes()
        if cast_votes == self._rated[0]:  # every open page asks every few seconds
            return self._rated[1]
        votes = []
        for cast in cast_votes:
            question = self.store.question(cast.question)
            left, right = (picture.model for picture in question.pictures)
            if left != right and cast.answer in PROBABILITIES:
                votes.append(Vote(left, right, PROBABILITIES[cast.answer], question.prompt))
        self._rated = (cast_votes, bradley_terry(votes) if votes else [])
        return self._rated[1]

    def pictures(self, prompt: str, left: str, right: str) -> tuple[Image.Image, Image.Image] | None:
        """Return the pictures of a prompt by two models, from the same seed; None where one of them has not drawn it."""
        files = [self.store.pictures(prompt, model) for model in (left, right)]
        for seed in files[0]:
            if seed in files[1]:
                first, second = (decode_image(file[seed].read_bytes(), str(file[seed])) for file in files)
                return first, second
        return None
