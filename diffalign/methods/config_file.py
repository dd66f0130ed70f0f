"""Strict YAML, and mappings, in and out of the training configuration."""

from __future__ import annotations

import dataclasses
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

from diffalign.core.documents import read_yaml, yaml_of
from diffalign.core.errors import ConfigError, did_you_mean
from diffalign.core.files import write
from diffalign.core.runs import CONFIG, Run
from diffalign.core.trust import marked_like, unmarked
from diffalign.methods.config import ALIASES, TrainConfig

T = TypeVar("T")


def find_config(path: str | Path) -> Path:
    """Return a config file; one of the recipes `configs/...` is found wherever the package is installed."""
    path = Path(path)
    if path.exists() or path.parts[:1] != ("configs",):
        return path
    package = Path(__file__).resolve().parents[1]
    places = (package.parent / "configs", package / "_configs")
    return next((file for place in places if (file := place.joinpath(*path.parts[1:])).is_file()), path)


def load_yaml(path: str | Path, above: Sequence[Path] = ()) -> dict[str, Any]:
    """Return the keys of a YAML config under their own names (aliases resolved), on top of those of the file that `base` names.

    `above` are the files whose `base` has led here.
    Raises ConfigError that names the file for an unknown key, with the nearest known one, and for YAML that does not parse.
    """
    path = find_config(path)
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such config file")
    values = read_yaml(path)
    base = values.pop("base", None)
    if path.resolve() in above:
        raise ConfigError(f"{path}: `base` leads back to this file")
    below = {} if base is None else load_yaml(path.parent / str(base), [*above, path.resolve()])
    return below | known_keys(values, str(path))


def known_keys(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return `values` under their own names, aliases resolved.

    Raises ConfigError for an unknown key, with the nearest known one, for a key that is given under two names, and for one word where
    a list is expected.
    """
    known, hints = {f.name for f in dataclasses.fields(TrainConfig)}, get_type_hints(TrainConfig)
    for alias, key in ALIASES.items():
        if alias in values and key in values:
            raise ConfigError(f"{where}: `{key}` is given twice, as `{key}` and as `{alias}`")
    renamed = {ALIASES.get(key, key): value for key, value in values.items()}
    for key in renamed:
        if key not in known:
            raise ConfigError(f"{where}: unknown key `{key}`.{did_you_mean(str(key), known)}")
        if isinstance(renamed[key], str) and get_origin(hints[key]) is list:
            raise ConfigError(f"{where}: `{key}` is {renamed[key]!r}; expected a list, [{renamed[key]}]")
    return renamed


def from_mapping(values: Mapping[str, Any], where: str) -> TrainConfig:
    """Return the config of `values`, types checked; `checks.check` does the rest. Raises ConfigError that names the key."""
    return typed(TrainConfig, known_keys(values, where), where)


def config_of(run: Run) -> TrainConfig:
    """Return the config that a run was trained with. Raises ConfigError where its config.yaml is missing or of no such config."""
    return from_mapping(load_yaml(run.folder / CONFIG), str(run.folder / CONFIG))


def typed(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """Return the dataclass `kind` of `values`, types checked. Raises ConfigError that names the key."""
    from jsonargparse import ArgumentParser  # kept out of `import diffalign`

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind)
    try:
        made = parser.parse_object(unmarked(values)).as_dict()
        return kind(**{name: marked_like(values.get(name), value) for name, value in made.items()})
    except (ArgumentError, TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error


def save_yaml(config: TrainConfig, path: Path) -> None:
    """Write every key of `config`, so that the file alone repeats the run; it is there whole or not at all."""
    write({path: yaml_of(dataclasses.asdict(config))})
