"""What the train page does: who may train, which recipe a method starts from, and the flags that choices on the page become."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from diffalign.app.jobs import TRAIN, Job, Queue
from diffalign.app.options import AppConfig
from diffalign.app.voters import AccessError, Accounts
from diffalign.core.errors import ConfigError
from diffalign.core.runs import model_name
from diffalign.data.records import Record
from diffalign.data.store import VoteStore
from diffalign.methods.config import TrainConfig
from diffalign.methods.config_file import find_config, load_yaml
from diffalign.methods.recipe import recipe_of

EVERYONE = "everyone"
# When one chooses a method, for somebody who never read a paper.
METHODS = {
    "inpo": "InPO: for few votes. It finds the noise that each picture came from, and learns more of every pair; it starts slower.",
    "diffusion_dpo": "Diffusion-DPO: for thousands of votes, as most published models. It learns from each pair, and starts at once.",
    "mapo": "MaPO: for large models on a small GPU. It needs no second model to compare with; it may move further from the start.",
}
GENTLE_TO_STRONG = {1: 4.0, 2: 2.0, 3: 1.0, 4: 0.5, 5: 0.25}  # beta, as a multiple of the recipe's: a smaller one moves further
MOVES_FURTHER = ("mapo",)  # methods whose larger beta moves further
LEAST_VOTES = 4
MOST_STEPS = 100_000
SHEETS, SHOWN_PROMPTS = 5, 4  # validation pictures: times a training draws them, besides the start, and prompts
METHOD, STEPS = "diffusion_dpo", 1000  # where a recipe names none
MEMORY_SECONDS = 300.0  # that the estimate of the memory may take


@dataclass(frozen=True, slots=True)
class Preset:
    """The config file that a method starts from, with its beta and number of steps."""

    file: str
    beta: float
    steps: int


@dataclass(frozen=True, slots=True)
class Workshop:
    """Checks who asks, and turns choices into trainings."""

    config: AppConfig
    store: VoteStore
    queue: Queue
    accounts: Accounts
    _memory: dict[str, str] = field(default_factory=dict)  # by method
    _measuring: threading.Lock = field(default_factory=threading.Lock)

    def start(self, login: str | None, name: str, voter: str, method: str, strength: int, steps: int) -> Job:
        """Put a training on the votes of `voter` into the queue.

        Raises AccessError unless an owner asks, ConfigError for choices that cannot be meant or for too few votes.
        """
        self.owner(login)
        if method not in METHODS or strength not in GENTLE_TO_STRONG or not 1 <= steps <= MOST_STEPS:
            raise AccessError("choose a method, a strength from 1 to 5, and at least one step")
        if name.strip() in {model_name(path) for path in (self.config.pretrained_model_name_or_path, *self.config.runs)}:
            raise ConfigError(f"there is a model called {name.strip()!r} already; choose another name")
        records = list(self._records(voter))
        if sum(record.prob != 0.5 for record in records) < LEAST_VOTES:
            raise AccessError(f"{len(records)} votes, ties among them; a training needs at least {LEAST_VOTES} that prefer one picture")
        # A prompt that begins otherwise could be taken for a flag or a list.
        prompts = [prompt for prompt in dict.fromkeys(record.prompt for record in records) if prompt[:1].isalnum()][:SHOWN_PROMPTS]
        flags = [*self._model(method, strength), "--max_train_steps", str(steps)]
        flags += ["--checkpointing_steps", str(max(1, steps // 10)), "--validation_steps", str(max(1, steps // SHEETS))]
        flags += ["--validation_prompts", *prompts] if prompts else []
        return self.queue.add(name.strip(), records, flags)

    @property
    def usual(self) -> str:
        """Return the method of the app's recipe."""
        return load_yaml(self.config.config).get("method", METHOD)

    def preset(self, method: str) -> Preset:
        """Return what a method starts from: the app's recipe, or that of the method beside it (mapo.yaml beside diffusion_dpo.yaml)."""
        file, keys = self.config.config, load_yaml(self.config.config)
        beside = Path(file).with_name(Path(file).name.replace(self.usual, method))
        if method != self.usual and find_config(beside).is_file():
            file, keys = str(beside), load_yaml(beside)
        beta = keys.get("beta") if keys.get("method", METHOD) == method else None
        made = recipe_of(TrainConfig(method=method, beta=beta)).beta
        assert made is not None  # of methods that have one
        return Preset(file, made, int(keys.get("max_train_steps", STEPS)))

    def beta(self, method: str, strength: int) -> float:
        """Return beta for a strength from 1, gentle, to 5."""
        factor = GENTLE_TO_STRONG[strength]
        return self.preset(method).beta * (1 / factor if method in MOVES_FURTHER else factor)

    def memory(self, login: str | None, method: str) -> str:
        """Return what `diffalign train --dry_run` prints of a training, whose last line says whether it fits; in a process of its own.

        Raises AccessError unless an owner asks for a method of `METHODS`, ConfigError where the estimate fails.
        """
        self.owner(login)
        if method not in METHODS:
            raise AccessError("choose a method")
        with self._measuring:  # one at a time: each takes seconds of a core
            if method not in self._memory:
                self._memory[method] = self._measured(method)
            return self._memory[method]

    def _measured(self, method: str) -> str:
        command = [*TRAIN, *self._model(method), "--dataset_name", str(self.store.path), "--dry_run"]
        try:
            made = subprocess.run(  # noqa: S603  # a list, and no shell
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=MEMORY_SECONDS
            )
        except subprocess.TimeoutExpired as error:
            raise ConfigError("how much memory a training takes could not be estimated in time") from error
        if made.returncode:
            raise ConfigError((made.stderr.strip().splitlines() or ["the estimate of the memory failed"])[-1])
        return made.stdout.strip()

    def _model(self, method: str, strength: int = 3) -> list[str]:
        model = ["--pretrained_model_name_or_path", self.config.pretrained_model_name_or_path]
        return ["--config", self.preset(method).file, *model, "--method", method, "--beta", f"{self.beta(method, strength):g}"]

    def owner(self, login: str | None) -> None:
        """Raise AccessError unless somebody is an owner."""
        if not self.accounts.is_owner(login):
            raise AccessError("only owners train, stop and delete")

    def act(self, login: str | None, deed: str, name: str, typed_name: str) -> None:
        """Do a deed to a training: stop, resume, delete, save_now or sample_now.

        Raises AccessError unless an owner asks, and for a name that was not typed to delete; ConfigError where the training is not so far.
        """
        self.owner(login)
        if deed == "delete" and typed_name != name:
            raise AccessError("type the name of the training to delete it")
        deeds = {"stop": self.queue.stop, "resume": self.queue.resume, "delete": self.queue.delete}
        if deed in deeds:
            deeds[deed](name)
        else:
            self.queue.ask(name, deed)

    def _records(self, voter: str) -> Iterator[Record]:
        for record in self.store.records():
            if voter in (EVERYONE, record.user) and record.prob is not None:
                yield record
