"""The models that `diffalign eval` compares: how each is opened, and what decides what its images look like."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffalign.core.errors import ConfigError
from diffalign.core.runs import RUN, run_facts
from diffalign.evaluate.options import EvalConfig
from diffalign.infer.load import base_of, check_layers, load
from diffalign.infer.shards import drawn_as, stamped
from diffalign.infer.users.personal import Personal
from diffalign.methods.build.bind import DTYPES
from diffalign.models.backbones.folders import check_folder, is_language_model, resolve
from diffalign.models.backbones.table import load_pipeline
from diffalign.rewards.score_table import stamps

BASE = "base"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One of the models compared. `told` are the arguments of `draw` that all of them share."""

    name: str
    path: str
    method: str | None  # that trained it; None for a base model
    facts: Mapping[str, Any]
    pipeline: Callable[[], Any]
    told: Mapping[str, Any]

    def opened(self) -> tuple[Any, Mapping[str, Any]]:
        """Return the pipeline, loaded, and what `draw` is told."""
        return self.pipeline(), self.told


def entries(config: EvalConfig, user: Any, device: str) -> list[Entry]:
    """Return the models of an evaluation, the base first; none is loaded yet.

    All are drawn at the size and prompt length of the run in `output_dir`. Raises ConfigError for runs that cannot be drawn as they are
    asked to be, and for two of one name; CheckpointError for folders that hold no model.
    """
    folder = Path(config.output_dir)
    others = [named(value) for value in config.runs]
    known = {path: run_facts(Path(path)) for path in (str(folder), *(path for _, path in others)) if (Path(path) / RUN).is_file()}
    for path, run in known.items():
        if run.get("kind") == "text":
            raise ConfigError(f"{path}: a run of {run['method']} that answers with texts; expected runs that draw")
    run = known[str(folder)]
    given = [known[path] for path in known] + ([run_facts(Path(config.positive))] if config.positive is not None else [])
    _check_user(user, given)
    told = drawn_as(folder) | {"true_cfg": any(one.get("inference") == "negative_guidance" for one in given)}
    precision = config.mixed_precision or run.get("mixed_precision", "no")
    make = _Maker(config, user, device, precision, told)
    own = folder.resolve().name
    found = [make.base(run), make.run(own if own != BASE else "run", str(folder), run)]
    found += [make.run(name, path, known[path]) if path in known else make.plain(name, path) for name, path in others]
    names = [entry.name for entry in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"two of the models are called `{twice[0]}`; name one of --runs as NAME=PATH")
    return found


def named(value: str) -> tuple[str, str]:
    """Return name and path of NAME=PATH or PATH."""
    name, equals, path = value.partition("=")
    if equals and re.fullmatch(r"[\w.-]+", name) and not Path(value).exists():
        return name, path
    return (Path(value).resolve() if Path(value).is_dir() else Path(value)).name, value


def _check_user(user: Any, runs: list[dict[str, Any]]) -> None:
    """Raise ConfigError for a personalised run without a user, and for a user without such a run."""
    personal = [run for run in runs if run.get("inference") == "user"]
    if personal and user is None:
        raise ConfigError(
            f"a run of {personal[0]['method']} draws for a user; give a file of `diffalign user embed` with --user, pairs with --pairs "
            "(and --user_id, if they are of several users), or a training user's id with --user_id"
        )
    if user is not None and not personal:
        raise ConfigError(f"a run of {runs[0]['method']} knows no users; leave out --user, --user_id and --pairs")


@dataclass(frozen=True)
class _Maker:
    """Makes the entries of one evaluation."""

    config: EvalConfig
    user: Any
    device: str
    precision: str
    told: Mapping[str, Any]

    def base(self, run: Mapping[str, Any]) -> Entry:
        """Return the model that the run in `output_dir` is compared with: what it was trained from, or the run that it steers."""
        folder, positive = self.config.output_dir, self.config.positive
        if positive is not None:
            facts = run_facts(Path(positive))
            return self._entry(BASE, positive, facts["method"], stamped(positive), lambda: self._for(self._load(positive)))
        made_of = {name: run.get(name) for name in ("revision", "variant", "vae")} | stamped(run["base"])
        return self._entry(BASE, run["base"], None, made_of, lambda: base_of(folder, dtype=self._dtype()).to(self.device))

    def run(self, name: str, path: str, run: Mapping[str, Any]) -> Entry:
        """Return a finished run; `positive`, `alpha` and `beta` are for the one in `output_dir`, and for others that take them."""
        config, options = self.config, {}
        if path == str(Path(config.output_dir)) or run.get("inference") == "negative_guidance":
            over = None if config.positive is None else run_facts(Path(config.positive))
            check_layers(Path(path), dict(run), config.positive, over, config.alpha, config.beta)
            options = {"positive": config.positive, "alpha": config.alpha, "beta": config.beta}
        facts: dict[str, Any] = stamped(path) | options
        if config.positive is not None and options:
            facts["positive"] = stamped(config.positive)
        if run.get("inference") == "user":
            named = {option: getattr(config, option) for option in ("user", "user_id", "pairs")}
            facts |= named | {"user_files": [list(stamp) for stamp in stamps(named)]}
        return self._entry(name, path, run["method"], facts, lambda: self._for(self._load(path, **options)))

    def plain(self, name: str, path: str) -> Entry:
        """Return a pipeline as it is."""
        if is_language_model(path):
            raise ConfigError(f"{path}: a language model; expected a finished run, or a pipeline that draws")
        check_folder(resolve(path))
        return self._entry(name, path, None, stamped(path), lambda: load_pipeline(path, dtype=self._dtype()).to(self.device))

    def _entry(self, name: str, path: str, method: str | None, facts: Mapping[str, Any], pipeline: Callable[[], Any]) -> Entry:
        known = {**facts, **self.told, "mixed_precision": self.precision}
        return Entry(name=name, path=path, method=method, facts=known, pipeline=pipeline, told=self.told)

    def _dtype(self) -> Any:
        return DTYPES[self.precision]

    def _load(self, path: str, **options: Any) -> Any:
        return load(path, dtype=self._dtype(), device=self.device, **options)

    def _for(self, loaded: Any) -> Any:
        """Return the pipeline that draws for the user, where there are users."""
        return loaded.for_user(self.user) if isinstance(loaded, Personal) else loaded
