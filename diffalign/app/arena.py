"""Models side by side: drawn at the same seeds, voted on blind, and rated by those votes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from diffalign.app.background import Background
from diffalign.app.commands import draw_command
from diffalign.core.errors import ConfigError
from diffalign.core.files import write
from diffalign.core.intervals import Verdict, share_interval, sign_test, verdict
from diffalign.core.runs import Run
from diffalign.data.pictures import decode_image
from diffalign.data.questions import PROBABILITIES, CastVote
from diffalign.data.store import VoteStore
from diffalign.evaluate.ratings import Rating, Vote, bradley_terry
from diffalign.infer.options import DrawVotesConfig

SCALES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)  # weights of an adapter that are drawn: 0 is the base, 1 the run


@dataclass(frozen=True, slots=True)
class Duel:
    """How one model fares against another by blind votes; each prompt counts once."""

    model: str
    against: str
    rate: float  # mean share of the votes, by prompt; a tie is one half
    low: float  # of its 95 % interval; NaN of too few votes
    high: float
    prompts: int
    verdict: Verdict


@dataclass(slots=True)
class Arena:
    """The pictures of several models in a vote store of their own, and the process that draws them."""

    store: VoteStore
    drawing: Background
    _rated: tuple[list[CastVote], list[Vote], list[Rating]] = field(default_factory=lambda: ([], [], []))  # the last ratings, and of what

    def draw(self, models: Sequence[str], prompts: Sequence[str], pairs: int) -> None:
        """Start to draw until so many pairs wait that nobody has seen; of no prompts, of those that `diffalign votes draw` takes.

        Raises ConfigError for fewer than two models, for one that does not draw, and while it draws.
        """
        if len(set(models)) < 2:
            raise ConfigError("choose two models at least")
        self._start(models, prompts, pairs)

    def draw_strengths(self, run: str, prompts: Sequence[str]) -> None:
        """Start to draw a run at every strength of `SCALES`, a further picture of each prompt. Raises as `draw`, also for no prompt."""
        if not prompts:
            raise ConfigError("write a prompt at least")
        self._start([run], prompts, self.store.unseen() + 1, SCALES)

    def _start(self, models: Sequence[str], prompts: Sequence[str], pairs: int, scales: Sequence[float] = ()) -> None:
        for model in models:
            if Run.is_in(model):
                Run.open(model, expects="image")
        file = self.store.path.with_suffix(".prompts.txt")
        if not self.drawing.busy:  # a file, so that a prompt is never taken for a flag or the name of one
            write({file: "".join(f"{prompt}\n" for prompt in prompts)})
        config = DrawVotesConfig(
            dataset_name=str(self.store.path),
            pretrained_model_name_or_path=list(models),
            prompts=[str(file)] if prompts else [],
            images_per_prompt=1,
            same_seed=True,
            lora_scales=list(scales),
            ahead=pairs,
        )
        self.drawing.start(draw_command(config))

    def votes(self) -> list[Vote]:
        """Return the votes on pairs of two models."""
        cast_votes = self.store.votes()
        if cast_votes != self._rated[0]:  # every open page asks every few seconds
            votes = []
            for cast in cast_votes:
                question = self.store.question(cast.question)
                left, right = (picture.model for picture in question.pictures)
                if left != right and cast.answer in PROBABILITIES:
                    votes.append(Vote(left, right, PROBABILITIES[cast.answer], question.prompt))
            self._rated = (cast_votes, votes, bradley_terry(votes) if votes else [])
        return self._rated[1]

    def ratings(self) -> list[Rating]:
        """Return every model's rating by the votes on pairs of two models, best first; of no such votes, nothing."""
        return self._rated[2] if self.votes() else []

    def duels(self, against: str) -> list[Duel]:
        """Return how every model that met the model `against` fares with it, in the order of the ratings."""
        votes = self.votes()
        return [_duel(votes, rated.model, against) for rated in self.ratings() if _met(votes, rated.model, against)]

    def pictures(self, prompt: str, left: str, right: str) -> tuple[Image.Image, Image.Image] | None:
        """Return the pictures of a prompt by two models, from the same seed; None where one of them has not drawn it."""
        files = [self.store.pictures(prompt, model) for model in (left, right)]
        for seed in files[0]:
            if seed in files[1]:
                first, second = (decode_image(file[seed].read_bytes(), str(file[seed])) for file in files)
                return first, second
        return None


def _met(votes: Sequence[Vote], model: str, other: str) -> bool:
    return any({vote.left, vote.right} == {model, other} for vote in votes)


def _duel(votes: Sequence[Vote], model: str, against: str) -> Duel:
    shares: dict[str | None, list[float]] = {}
    for vote in votes:
        if (vote.left, vote.right) == (model, against):
            shares.setdefault(vote.prompt, []).append(vote.share)
        elif (vote.left, vote.right) == (against, model):
            shares.setdefault(vote.prompt, []).append(1.0 - vote.share)
    means = np.array([np.mean(of_prompt) for of_prompt in shares.values()])
    low, high = share_interval(means, seed=0)
    p = sign_test(int((means > 0.5).sum()), int((means < 0.5).sum()))
    return Duel(model, against, float(means.mean()), low, high, len(means), verdict(low, high, p))
