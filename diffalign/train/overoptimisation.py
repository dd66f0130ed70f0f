"""Watches a training run for over-optimisation: judges that it does not train on look at a fixed set of pictures as it goes."""

from __future__ import annotations

import gc
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import broadcast_object_list

from diffalign.core.errors import ConfigError
from diffalign.core.files import atomic_folder, plain
from diffalign.core.intervals import LEAST_PROMPTS
from diffalign.core.progress import progress
from diffalign.core.specs import Spec
from diffalign.data.cache import fingerprint
from diffalign.data.prompts import prompts_of
from diffalign.data.world.checks import is_caption
from diffalign.infer.preview import drawn
from diffalign.methods.config import TrainConfig
from diffalign.methods.parts import Parts
from diffalign.rewards.drift import Appearance, appearance, features
from diffalign.rewards.hacking import Change, alarm, change, unjudged
from diffalign.rewards.scorers.function import CallableScorer
from diffalign.rewards.scorers.world import WorldScorer
from diffalign.rewards.table import bind_scorer, load_scorer, together
from diffalign.train.save import save_run

logger = logging.getLogger(__name__)
EVALUATIONS, BEST = "eval.jsonl", "best"
IMAGES = 2  # of each prompt: without a second there is no diversity
STATE = ("base", "best", "alarms", "recent", "stopped")
EXTRA = 2  # evaluations: the run stops where `eval_patience` of the last so many more rang the alarm


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The scores and the look of the pictures that were drawn at a step."""

    scores: dict[str, list[float]]  # by scorer, of every picture
    looks: Appearance

    @classmethod
    def of_state(cls, state: Mapping[str, Any], prompts: int) -> Evaluation:
        """Return the evaluation in a checkpoint; in those of earlier versions some looks are missing, or a mean instead of a list."""
        looks = state.get("looks", {"diversity": state.get("diversity")})
        values = {look.name: looks.get(look.name, [math.nan] * prompts) for look in fields(Appearance)}
        return cls(state["scores"], Appearance(**values))


@dataclass(slots=True)
class Watch:
    """Draws the same prompts with the same seeds at step 0, every `eval_every` steps and the last one, and compares with step 0.

    The best weights are those of the silent evaluation with the largest mean, over the held-out scorers, of the change in standard
    deviations (`Change.effect`), the later one of two alike; step 0 is no candidate, nor is one where that is not finite. `state()` and
    `restore()` carry it through checkpoints.
    """

    config: TrainConfig
    prompts: list[str]
    scorers: list[Spec]
    base: Evaluation | None = None
    best: tuple[int, float] | None = None  # step, and mean change of the held-out scores
    alarms: list[bool] = field(default_factory=list)  # whether each of the last evaluations rang
    recent: list[float] = field(default_factory=list)  # implicit accuracy of the last `eval_every` steps
    stopped: str | None = None  # why
    logged: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, config: TrainConfig) -> Watch:
        """Return the watch that `config` asks for. Raises ConfigError for prompts and scorers that are none, before any weights load."""
        if config.eval_every is None:
            return cls(config, [], [])
        prompts = list(dict.fromkeys(prompts_of(config.eval_prompts)))
        if config.eval_reward is None and config.eval_every < LEAST_PROMPTS:
            raise ConfigError(
                f"`eval_every` is {config.eval_every}; expected at least {LEAST_PROMPTS} without `eval_reward`, "
                "for the implicit accuracy of so many steps stands for it"
            )
        if len(prompts) < LEAST_PROMPTS:
            raise ConfigError(f"`eval_prompts` has {len(prompts)} different prompts; expected at least {LEAST_PROMPTS}, better 30 or more")
        scorers = config.eval_scorers or (["adherence"] if all(map(is_caption, prompts)) else [])
        if not scorers:
            raise ConfigError(
                "`eval_scorers` is empty; name judges that training does not optimise, for example [pickscore, imagereward]. "
                "Only for prompts of the embedded world there is one by default, adherence"
            )
        if config.eval_reward in scorers:
            raise ConfigError(f"`eval_reward` {config.eval_reward} is what training optimises; leave it out of `eval_scorers`")
        for spec in (*scorers, *filter(None, (config.eval_reward,))):
            if together(spec):
                raise ConfigError(
                    f"`eval_scorers` and `eval_reward` score pictures one by one, and {spec} those of a prompt beside each other"
                )
            bind_scorer(spec)
        return cls(config, prompts, list(scorers))

    def due(self, step: int) -> bool:
        """Return whether pictures are to be judged at `step`."""
        return self.config.eval_every is not None and (step % self.config.eval_every == 0 or step == self.config.max_train_steps)

    def follow(self, facts: Mapping[str, float]) -> None:
        """Note a step's implicit accuracy: it rises with what training optimises, even where `eval_reward` falls."""
        if self.config.eval_every is not None and "implicit_acc" in facts:
            self.recent = [*self.recent, facts["implicit_acc"]][-self.config.eval_every :]

    def look(self, parts: Parts, step: int, facts: Mapping[str, Any]) -> None:
        """Judge pictures of the network as it is, write it to `best/` if it is, and count alarms; `facts` are for its run.json."""
        pictures = self._evaluation(parts, step)
        base = self.base = self.base or pictures
        shown = [prompt for prompt in self.prompts for _ in range(IMAGES)]
        held_out = [change(base.scores[name], scores, shown, name) for name, scores in pictures.scores.items()]
        rewards = [held_out.pop()] if self.config.eval_reward else []
        if self.recent:
            steps = [str(number) for number in range(len(self.recent))]
            rewards.append(change([0.5] * len(self.recent), self.recent, steps, "implicit_acc"))
        shifts = base.looks.changes(pictures.looks, self.prompts)
        reasons = alarm(rewards, held_out, shifts)
        for name, scores in pictures.scores.items():
            reasons += unjudged(name, len(_finite(base.scores[name])), len(_finite(scores)))
        effects = [held.effect for held in held_out]
        gained = fmean(effects) if all(map(math.isfinite, effects)) else math.nan
        if step and not reasons and gained >= (-math.inf if self.best is None else self.best[1]):
            self.best = step, gained
            self._keep(parts, {"steps": step, "held_out": gained, **facts})
        self._count(reasons, step)
        self._write(pictures, [*held_out, *rewards, *shifts], gained, reasons, step)

    def shared(self) -> dict[str, float]:
        """Return what is logged of the last look, which is the first process's, as is whether to stop."""
        state: list[Any] = [self.logged, self.stopped]
        broadcast_object_list(state)
        self.logged, self.stopped = state
        return self.logged

    def facts(self) -> dict[str, Any]:
        """Return what run.json says of the watch."""
        if self.config.eval_every is None:
            return {}
        return {"stopped": self.stopped, "best": None if self.best is None else {"step": self.best[0], "held_out": self.best[1]}}

    def identity(self) -> dict[str, Any]:
        """Return what must be the same for a checkpoint to be gone on from."""
        if self.config.eval_every is None:
            return {}
        return {"eval": [fingerprint({"prompts": self.prompts}), self.scorers, self.config.eval_reward]}

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {name: getattr(self, name) for name in STATE} | {"base": self.base and asdict(self.base)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over the state of a checkpoint."""
        for name, value in state.items():
            setattr(self, name, Evaluation.of_state(value, len(self.prompts)) if name == "base" and value else value)
        if isinstance(self.alarms, int):  # of a checkpoint from when alarms were counted in a row
            self.alarms = [True] * self.alarms
        if self.stopped:
            logger.warning("was stopped at %s; `eval_patience` is %d", self.stopped, self.config.eval_patience)
            self.stopped = self.stopped if sum(self.alarms) >= self.config.eval_patience else None

    def _evaluation(self, parts: Parts, step: int) -> Evaluation:
        """Return scores and looks of pictures drawn now, the training reward last; one scorer is in memory at a time."""
        shown = [prompt for prompt in self.prompts for _ in range(IMAGES)]
        (images,) = drawn(
            parts,
            self.config,
            shown,
            range(len(shown)),
            f"evaluation at step {step}",
            num_inference_steps=self.config.eval_num_inference_steps,
            guidance_scale=self.config.eval_guidance_scale,
        )
        scores: dict[str, list[float]] = {}
        for spec in progress([*self.scorers, *filter(None, (self.config.eval_reward,))], desc="judge", unit="scorers"):
            scorer = load_scorer(spec, device=str(parts.backbone.device))
            if scorer.name in scores:
                raise ConfigError(f"`eval_scorers` and `eval_reward`: two of them give a score named `{scorer.name}`; leave one out")
            scores[scorer.name] = [float(score) for score in scorer(images, shown)]
            if step == 0 and all(map(math.isnan, scores[scorer.name])):
                raise ConfigError(
                    f"`{scorer.name}` can judge none of the pictures of `eval_prompts`; leave it out, or choose other prompts"
                )
            if not isinstance(scorer, WorldScorer | CallableScorer):  # which have no weights, and collecting takes a while
                del scorer
                gc.collect()
                torch.cuda.empty_cache()
        groups = [images[start : start + IMAGES] for start in range(0, len(images), IMAGES)]
        return Evaluation(scores, appearance(groups, features("pixels")))

    def _keep(self, parts: Parts, facts: dict[str, Any]) -> None:
        """Write the network as it is to `best/`, whole or not at all, in the form of the run's own result."""
        folder = Path(self.config.output_dir) / BEST
        with atomic_folder(folder) as temporary:
            save_run(parts, self.config, temporary, folder, facts)

    def _count(self, reasons: Sequence[str], step: int) -> None:
        """Note an alarm or its absence, and stop the run where too many of the last evaluations rang."""
        patience = self.config.eval_patience
        self.alarms = [*self.alarms, bool(reasons)][-(patience + EXTRA) :]
        for reason in reasons:
            logger.warning("step %d: over-optimisation: %s", step, reason)
        if reasons and sum(self.alarms) >= patience:
            self.stopped = (
                f"step {step}: the alarm rang in {sum(self.alarms)} of the last {len(self.alarms)} evaluations; {'; '.join(reasons)}"
            )
            best = "" if self.best is None else f" The best weights, of step {self.best[0]}, are in {self.config.output_dir}/{BEST}."
            logger.warning("stopped at %s.%s", self.stopped, best)

    def _write(self, pictures: Evaluation, changes: Sequence[Change], gained: float, reasons: list[str], step: int) -> None:
        """Write a row of eval.jsonl, and keep what is to be logged."""
        levels = {name: fmean(_finite(scores) or [math.nan]) for name, scores in pictures.scores.items()} | pictures.looks.means()
        row = {"step": step, **levels, "changes": list(map(asdict, changes)), "held_out": gained, "alarm": reasons}
        with (Path(self.config.output_dir) / EVALUATIONS).open("a", encoding="utf-8") as log:
            log.write(json.dumps(plain(row)) + "\n")
        logged = levels | {f"{one.name}_change": one.value for one in changes} | {"held_out": gained, "alarm": float(bool(reasons))}
        self.logged = {f"eval/{name}": value for name, value in logged.items() if math.isfinite(value)}


def _finite(scores: Sequence[float]) -> list[float]:
    """Return the scores of the pictures that a scorer can judge."""
    return [score for score in scores if not math.isnan(score)]
