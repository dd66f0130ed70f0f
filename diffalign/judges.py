"""Which scorers judge a run: those that its training did not use, as far as its own files say, and the one that it optimised."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffalign.errors import ConfigError
from diffalign.infer.card import Source
from diffalign.infer.load import run_facts
from diffalign.rewards.table import SCORERS
from diffalign.shapes.checks import is_caption
from diffalign.specs import Spec, bind, single

POOL = {"pickscore": "pickscore", "hps": "hpsv2.1", "imagereward": "imagereward", "clipscore": "clipscore", "aesthetic": "aesthetic"}
WORLD = {"adherence": "adherence"}
"""Default scorers, and what their scores are called. Of the embedded world adherence alone: its other judges are tastes, and one who
likes pictures high up is not wrong to like them less in the middle."""


@dataclass(frozen=True)
class Trained:
    """What a training is known to have used: scores by name, and the scorers that gave them, where the table says."""

    names: frozenset[str] = frozenset()
    scorers: tuple[Spec, ...] = ()

    def used(self, spec: Spec, name: str) -> bool:
        """Return whether the training used a scorer, whose score has that name."""
        return name in self.names or any(_key(spec) == _key(own) for own in self.scorers)


@dataclass(frozen=True)
class Panel:
    """Who judges: `rewards` were optimised, `others` may have been used in training all the same if they were asked for."""

    others: tuple[Spec, ...]
    rewards: tuple[Spec, ...]
    trained: Trained

    @property
    def all(self) -> tuple[Spec, ...]:
        """Return every scorer once, the rewards last."""
        return tuple({_key(spec): spec for spec in (*self.others, *self.rewards)}.values())

    def held_out(self, spec: Spec, name: str) -> bool:
        """Return whether a scorer's word counts as that of one who was not trained on."""
        return not self.reward(spec) and not self.trained.used(spec, name)

    def reward(self, spec: Spec) -> bool:
        """Return whether training optimised a scorer, as far as is known."""
        return _key(spec) in map(_key, self.rewards)


def panel(
    prompts: Sequence[str], folders: Sequence[Path], *, scorers: Sequence[Spec] = (), reward: Spec | None = None, taste: str | None = None
) -> Panel:
    """Return who judges the finished runs in `folders` on `prompts`.

    Where no `scorers` are given, those of the default pool that no run was trained with; where no `reward` or `taste` is, what the runs'
    own files say. Raises ConfigError for scorers that are none, or where nothing of the pool is left.
    """
    known = [trained_with(folder) for folder in folders]
    trained = Trained(frozenset().union(*(one.names for one in known)), tuple(spec for one in known for spec in one.scorers))
    told = [] if reward is None else [reward]
    told += [] if taste is None else [{"taste": {"name": taste}}]
    rewards = tuple(told) or trained.scorers
    for spec in (*scorers, *rewards):
        bind("scorer", SCORERS, spec, device="cpu")
    given = tuple(scorers)
    if not given:
        pool = WORLD if all(map(is_caption, prompts)) else POOL
        given = tuple(s for s, name in pool.items() if not trained.used(s, name) and _key(s) not in map(_key, rewards))
        if not given:
            raise ConfigError(f"the training used all of {', '.join(pool)}, the default scorers; give others with --scorers")
    return Panel(given, rewards, trained)


def trained_with(folder: Path) -> Trained:
    """Return what a finished run's config, and the manifest of its table if that is still there, say that its training used.

    Of a table by `pairs generate` the score that ranked it, or all of them; of any table the scores that the config names.
    """
    source = Source.read(folder, run_facts(folder))
    settings, manifest = source.settings, source.manifest or {}
    about = {scorer["name"]: scorer.get("spec", scorer["name"]) for scorer in manifest.get("scorers", [])}
    names = set((settings.get("scores") or {}).values())
    names |= set(_named([settings.get(key) for key in ("transforms", "curriculum")]))
    if (generated := manifest.get("generated")) is not None:
        names |= {generated["rank_by"]} if generated.get("rank_by") else set(about)
    asked = [settings["eval_reward"]] if settings.get("eval_reward") else []
    return Trained(frozenset(names), (*(spec for name, spec in about.items() if name in names), *asked))


def _named(value: Any) -> Iterator[str]:
    """Yield the names under any `score` or `scores` within nested specs."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key in ("score", "scores"):
                yield from [inner] if isinstance(inner, str) else inner
            else:
                yield from _named(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _named(inner)


def _key(spec: Spec) -> str:
    """Return a text that two specs share exactly if they name the same scorer with the same constants, defaults included."""
    name, constants = single("scorer", spec)
    accepted = inspect.signature(SCORERS[name]).parameters if name in SCORERS else {}
    defaults = {n: p.default for n, p in accepted.items() if p.default is not p.empty}
    return json.dumps([name, defaults | dict(constants)], sort_keys=True)
