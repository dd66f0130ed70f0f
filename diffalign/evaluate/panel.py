"""Which scorers judge a run: those that its training did not use, as far as its own files say, and the one that it optimised."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffalign.core.errors import ConfigError
from diffalign.core.runs import Run, scorers_of
from diffalign.core.specs import Spec, single
from diffalign.core.trust import CURE, in_words, reaching, refused, trusted, untrusted
from diffalign.data.world.checks import is_caption
from diffalign.infer.export.card import RunFiles
from diffalign.methods import method_of
from diffalign.rewards.shards import MANNERS
from diffalign.rewards.table import SCORERS, bind_scorer, called, compares, parts_of, together

logger = logging.getLogger(__name__)

POOL = {"pickscore": "pickscore", "hps": "hpsv2.1", "imagereward": "imagereward", "clipscore": "clipscore", "aesthetic": "aesthetic"}
WORLD = {"adherence": "adherence"}
"""Default scorers, and what their scores are called. Of the embedded world adherence alone: its other judges are tastes, and one who
likes pictures high up is not wrong to like them less in the middle."""


@dataclass(frozen=True)
class TrainingScorers:
    """What a training used, as far as its files tell: scores by name, and the scorers that gave them."""

    names: frozenset[str] = frozenset()
    scorers: tuple[Spec, ...] = ()
    chose: tuple[Spec, ...] = ()
    """Which picked these weights among those of one training (`best/`): they were not trained on, but flatter them."""
    complete: bool = True
    """Whether run or table tell what scored the table; an older run whose table was moved does not."""

    @classmethod
    def together(cls, runs: Sequence[TrainingScorers]) -> TrainingScorers:
        """Return what several trainings used."""
        return cls(
            frozenset().union(*(one.names for one in runs)),
            tuple(spec for one in runs for spec in one.scorers),
            tuple(spec for one in runs for spec in one.chose),
            all(one.complete for one in runs),
        )

    def used(self, spec: Spec, name: str) -> bool:
        """Return whether the training used a scorer, whose score has that name."""
        return name in self.names or any(_key(spec) == _key(scorer) for scorer in self.scorers)


@dataclass(frozen=True)
class Panel:
    """The scorers of an evaluation."""

    others: tuple[Spec, ...]
    """Those to judge with; training may have used some of them, if the user named them."""
    rewards: tuple[Spec, ...]
    """Those that training optimised."""
    trained: TrainingScorers

    @property
    def all(self) -> tuple[Spec, ...]:
        """Return every scorer once, the rewards last."""
        return tuple({_key(spec): spec for spec in (*self.others, *self.rewards)}.values())

    def held_out(self, spec: Spec, name: str) -> bool | None:
        """Return whether training did not use a scorer; None where the files do not tell."""
        if self.reward(spec) or self.chose(spec) or self.trained.used(spec, name):
            return False
        return True if self.trained.complete else None

    def chose(self, spec: Spec) -> bool:
        """Return whether a scorer, itself not trained on, picked the weights."""
        return _key(spec) in map(_key, self.trained.chose)

    def reward(self, spec: Spec) -> bool:
        """Return whether training optimised a scorer, as far as is known."""
        return _key(spec) in map(_key, self.rewards)


def panel(
    prompts: Sequence[str],
    runs: Sequence[Run],
    *,
    scorers: Sequence[Spec] = (),
    reward: Spec | None = None,
    taste: str | None = None,
    trust: bool = False,
) -> Panel:
    """Return the scorers that judge finished runs on `prompts`.

    Args:
        prompts: what is drawn.
        runs: the finished runs that are compared.
        scorers: judges; if there are none, those of the default pool that no run was trained with.
        reward: what training optimised; if there is no `taste` either, what the runs' files tell.
        taste: the same, as a taste of the embedded world.
        trust: whether scorers that only the runs' files name may run code or contact a server; else a warning says that they are left out.

    Raises ConfigError for an unknown scorer, and where nothing of the pool is left.
    """
    trained = TrainingScorers.together([trained_with(run) for run in runs])
    named = [] if reward is None else [reward]
    named += [] if taste is None else [{"taste": {"name": taste}}]
    rewards = tuple(named) or _usable(trained.scorers, scorers, trust=trust)
    for spec in (*scorers, *rewards):
        bind_scorer(spec)
        if together(spec) and not compares(spec):
            raise ConfigError(f"{spec} scores pictures of one prompt beside each other, which compares no two models")
    judges = tuple(scorers)
    if not judges:
        pool = WORLD if all(map(is_caption, prompts)) else POOL
        judges = tuple(s for s, name in pool.items() if not trained.used(s, name) and _key(s) not in map(_key, rewards))
        if not judges:
            raise ConfigError(f"the training used all of {', '.join(pool)}, the default scorers; give others with --scorers")
    result = Panel(judges, rewards, trained)
    names = [name for spec in result.all if (name := called(spec)) is not None]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"`scorers`: two of them give a score named `{twice[0]}`; leave one out")
    return result


def _usable(specs: tuple[Spec, ...], named: Sequence[Spec], *, trust: bool) -> tuple[Spec, ...]:
    """Return those of the runs' scorers that may be used: see `core.trust`. A warning names each of the others."""
    if trust:
        return trusted(specs)
    marked = untrusted(specs, but=list(reaching(named)))
    for spec in filter(None, map(refused, marked)):
        logger.warning("not used as a judge: the scorer of the training, read from the run's files, which %s; %s", in_words(spec), CURE)
    return tuple(spec for spec in marked if refused(spec) is None)


def trained_with(run: Run) -> TrainingScorers:
    """Return what the training of a finished run used, by its facts and config; of an older run, by the manifest of its table.

    Of a table by `pairs generate` the score that ranked it, or all of them; of any table the scores that the config or the method names.
    """
    source = RunFiles.read(run)
    settings, manifest = source.settings, source.manifest
    about = {"specs": {}, "ranked_by": [], **(run.facts.get("scorers") or scorers_of(manifest or {}))}
    transforms = settings.get("transforms")
    transforms = method_of(run).transforms if transforms is None else transforms
    written = [about["ranked_by"], list((settings.get("scores") or {}).values()), *_named([transforms, settings.get("curriculum")])]
    names = {name for names in written for name in names if isinstance(name, str)}
    specs = {name: spec for spec, name in POOL.items()} | about["specs"]
    watched = [settings["eval_reward"]] if settings.get("eval_reward") else []
    chose = (settings.get("eval_scorers") or list(WORLD)) if "held_out" in run.facts else []
    complete = "scorers" in run.facts or manifest is not None or run.facts.get("table") is None
    used = (*(spec for name, spec in specs.items() if name in names), *watched)
    inner, choosing = (tuple(part for spec in specs for part in parts_of(spec)) for specs in (used, chose))
    return TrainingScorers(frozenset(names), inner, choosing, complete)


def _named(value: Any) -> Iterator[list[Any]]:
    """Yield the lists of names under any `score` or `scores` within nested specs."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key in ("score", "scores"):
                yield inner if isinstance(inner, list) else [inner]
            else:
                yield from _named(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _named(inner)


def _key(spec: Spec) -> str:
    """Return a text that two specs share exactly if they name the same scorer with the same constants, defaults included.

    A judge on a server, or a model here, stays the same whatever its score is called and in which manner it is asked.
    """
    name, constants = single("scorer", spec)
    accepted = inspect.signature(SCORERS[name]).parameters if name in SCORERS else {}
    defaults = {n: p.default for n, p in accepted.items() if p.default is not p.empty}
    decisive = {n: v for n, v in (defaults | dict(constants)).items() if name not in ("http", "vlm") or n not in ("name", *MANNERS)}
    return json.dumps([name, decisive], sort_keys=True)
