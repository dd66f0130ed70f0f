"""The models that `diffalign eval` compares: how each is loaded, and everything that decides what its images look like."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffalign.core.errors import ConfigError
from diffalign.core.runs import Run
from diffalign.evaluate.options import EvalConfig
from diffalign.infer.kinds.image import base_of
from diffalign.infer.load import check_layers, load
from diffalign.infer.shards import drawn_as, stamped
from diffalign.infer.users.personal import Personal
from diffalign.methods.builders.common import DTYPES
from diffalign.methods.edits import refuse_prompts_alone
from diffalign.models.backbones.folders import check_folder, is_language_model, resolve
from diffalign.models.backbones.table import load_pipeline
from diffalign.models.users.settings import check_sliders
from diffalign.rewards.shards import stamps

BASE = "base"
WHOM = ("user", "user_id", "pairs", "sliders")  # the options that say for whom a personalised run draws


@dataclass(frozen=True)
class Contestant:
    """One of the models compared."""

    name: str
    path: str
    method: str | None  # that trained it; None for a base model
    facts: Mapping[str, Any]  # what decides what its images look like
    pipeline: Callable[[], Any]
    draw_arguments: Mapping[str, Any]  # of `draw`, the same for all

    def opened(self) -> tuple[Any, Mapping[str, Any]]:
        """Return the pipeline, loaded, and the arguments of `draw`."""
        return self.pipeline(), self.draw_arguments


def contestants(config: EvalConfig, user: Any, device: str, *, inputs: bool = False) -> list[Contestant]:
    """Return the models of an evaluation, the base first; none is loaded yet.

    All are drawn at the size and prompt length of the run in `output_dir`, with `inputs` from input pictures. Raises ConfigError for
    settings that a run does not take, and for two models of one name; CheckpointError for folders that hold no model.
    """
    run = Run.open(config.output_dir, expects="image")
    others = [named(value) for value in config.runs]
    runs = {path: Run.open(path, expects="image") for _, path in others if Run.is_in(path)}
    under = None if config.positive is None else Run.open(config.positive)
    drawing = [run, *runs.values(), *([] if under is None else [under])]
    _check_user(user, drawing)
    arguments = drawn_as(run, inputs=inputs) | {"true_cfg": any(one.steers for one in drawing)}
    make = _Maker(config, user, device, config.mixed_precision or run.precision, arguments, under, inputs)
    first = run.folder.resolve().name
    models = [make.base(run), make.run(first if first != BASE else "run", run)]
    models += [make.run(name, runs[path]) if path in runs else make.plain(name, path) for name, path in others]
    names = [model.name for model in models]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"two of the models are called `{twice[0]}`; name one of --runs as NAME=PATH")
    return models


def named(value: str) -> tuple[str, str]:
    """Return name and path of NAME=PATH or PATH."""
    name, equals, path = value.partition("=")
    if equals and re.fullmatch(r"[\w.-]+", name) and not Path(value).exists():
        return name, path
    return (Path(value).resolve() if Path(value).is_dir() else Path(value)).name, value


def _check_user(user: Any, runs: Sequence[Run]) -> None:
    """Raise ConfigError for a personalised run without a user, and for a user without such a run."""
    personal = [run for run in runs if run.personal]
    if personal and user is None:
        raise ConfigError(
            f"a run of {personal[0].method} draws for a user; give a file of `diffalign user embed` with --user, pairs with --pairs "
            "(and --user_id, if they are of several users), a training user's id with --user_id, or values of --sliders"
        )
    if user is not None and not personal:
        raise ConfigError(f"a run of {runs[0].method} is not personalised; leave out --user, --user_id, --pairs and --sliders")
    if not isinstance(user, Mapping):
        return
    for run in personal:
        if "slider" not in run.facts["user_encoder"]:
            raise ConfigError(f"{run.folder}: has no sliders to set; expected a run with user_encoder slider, or leave out --sliders")
        check_sliders(user, run.facts["user_encoder"]["slider"]["attributes"])


@dataclass(frozen=True)
class _Maker:
    """Makes the contestants of one evaluation."""

    config: EvalConfig
    user: Any
    device: str
    precision: str
    draw_arguments: Mapping[str, Any]
    under: Run | None  # the run that `positive` names
    inputs: bool  # whether there are input pictures

    def base(self, run: Run) -> Contestant:
        """Return the model that the run in `output_dir` is compared with: what it was trained from, or the run that it steers."""
        if self.under is not None:
            positive = str(self.under.folder)
            return self._contestant(BASE, positive, self.under.method, stamped(positive), lambda: self._for(self._load(positive)))
        made_of = {name: run.facts.get(name) for name in ("revision", "variant", "vae", "denoiser", "base_lora")} | stamped(run.base)
        return self._contestant(BASE, run.base, None, made_of, lambda: base_of(run, dtype=self._dtype()).to(self.device))

    def run(self, name: str, run: Run) -> Contestant:
        """Return a finished run; `positive`, `alpha` and `beta` are for the one in `output_dir`, and for others that take them."""
        config, path, options = self.config, str(run.folder), {}
        if run.folder == Path(config.output_dir) or run.steers:
            check_layers(run, self.under, config.alpha, config.beta)
            options = {"positive": config.positive, "alpha": config.alpha, "beta": config.beta}
        facts: dict[str, Any] = stamped(path) | options
        if config.positive is not None and options:
            facts["positive"] = stamped(config.positive)
        if run.personal:
            whom = {option: getattr(config, option) for option in WHOM}
            facts |= whom | {"user_files": [list(stamp) for stamp in stamps(whom)]}
        return self._contestant(name, path, run.method, facts, lambda: self._for(self._load(path, **options)))

    def plain(self, name: str, path: str) -> Contestant:
        """Return a pipeline as it is."""
        if not self.inputs:
            refuse_prompts_alone(path)
        if is_language_model(path):
            raise ConfigError(f"{path}: a language model; expected a finished run, or a pipeline that draws")
        check_folder(resolve(path))
        return self._contestant(name, path, None, stamped(path), lambda: load_pipeline(path, dtype=self._dtype()).to(self.device))

    def _contestant(self, name: str, path: str, method: str | None, facts: Mapping[str, Any], pipeline: Callable[[], Any]) -> Contestant:
        decisive = {**facts, **self.draw_arguments, "mixed_precision": self.precision}
        return Contestant(name, path, method, decisive, pipeline, self.draw_arguments)

    def _dtype(self) -> Any:
        return DTYPES[self.precision]

    def _load(self, path: str, **options: Any) -> Any:
        return load(path, dtype=self._dtype(), device=self.device, **options)

    def _for(self, loaded: Any) -> Any:
        """Return the pipeline that draws for the user, of a personalised run."""
        return loaded.for_user(self.user) if isinstance(loaded, Personal) else loaded
