"""Strict YAML, and mappings, in and out of the training configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from diffalign.core.documents import read_yaml, yaml_of
from diffalign.core.errors import ConfigError, shortened
from diffalign.core.files import write
from diffalign.core.keys import default_of
from diffalign.core.runs import CONFIG, Run
from diffalign.core.values import key_value
from diffalign.methods.config import ALIASES, SYNONYMS, TrainConfig
from diffalign.methods.other_programs import cure

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
    """Return the keys of a YAML config under their names (aliases resolved), typed, on top of those of the file that `base` names.

    `above` are the files whose `base` has led here.
    Raises ConfigError that names the file for unknown keys, with what to write instead, for a value of another type, and for text that
    is no YAML.
    """
    try:
        path = find_config(path)
        there = path.is_file()
    except OSError as error:  # a name that is too long
        raise ConfigError(f"{shortened(str(path))}: cannot be read ({error.strerror})") from error
    if not there:
        raise ConfigError(f"{path}: there is no such config file")
    if path.resolve() in above:
        raise ConfigError(f"{path}: `base` leads back to this file")
    values = read_yaml(path)
    base = values.pop("base", None)
    if base is not None and not isinstance(base, str):
        raise ConfigError(f"{path}: `base` is {base!r}; expected another config file")
    below = {} if base is None else load_yaml(path.parent / base, [*above, path.resolve()])
    return on_top(below, typed_keys(values, str(path)))


def on_top(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return `below` with the keys of `above`, which also replace another name for the same thing.

    >>> on_top({"use_8bit_adam": True}, {"optimizer": "adafactor"})
    {'optimizer': 'adafactor'}
    """
    replaced = {SYNONYMS[name][0] for name in above if name in SYNONYMS and above[name]}
    replaced |= {name for name, (key, _) in SYNONYMS.items() if key in above}
    return {name: value for name, value in below.items() if name not in replaced} | dict(above)


def typed_keys(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return `values` under their names, aliases resolved, each in the type that its key has.

    Raises ConfigError for unknown keys, each with what to write instead, for a key that is given under two names, and for a value of
    another type.
    """
    for alias, key in ALIASES.items():
        if alias in values and key in values:
            raise ConfigError(f"{where}: `{key}` is given twice, as `{key}` and as `{alias}`")
    return _typed(TrainConfig, {ALIASES.get(key, key): value for key, value in values.items()}, where)


def from_mapping(values: Mapping[str, Any], where: str) -> TrainConfig:
    """Return the config of `values`, types checked; `checks.check` does the rest. Raises ConfigError that names the key."""
    return TrainConfig(**typed_keys(values, where))


def config_of(run: Run) -> TrainConfig:
    """Return the config that a run was trained with. Raises ConfigError where its config.yaml is missing or of no such config."""
    return from_mapping(load_yaml(run.folder / CONFIG), str(run.folder / CONFIG))


def typed(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """Return the dataclass `kind` of `values`, types checked. Raises ConfigError that names the key."""
    fields: Any = dataclasses.fields(kind)  # pyright: ignore[reportArgumentType]  # a dataclass
    if missing := [item.name for item in fields if item.name not in values and default_of(item) is dataclasses.MISSING]:
        raise ConfigError(f"{where}: `{missing[0]}` is missing")
    return kind(**_typed(kind, values, where))


def _typed(kind: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return `values`, which are keys of `kind`, in their types."""
    hints = {name: hint for name, hint in get_type_hints(kind).items() if name in {item.name for item in dataclasses.fields(kind)}}
    if unknown := [str(name) for name in values if name not in hints]:
        raise ConfigError("\n".join(f"{where}: unknown key `{name}`.{cure(name, hints)}" for name in unknown))
    result = {}
    for name, value in values.items():
        try:
            result[name] = key_value(name, hints[name], value)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
    return result


def save_yaml(config: TrainConfig, path: Path) -> None:
    """Write every key of `config`, so that the file alone repeats the run; it is there whole or not at all."""
    write({path: yaml_of(dataclasses.asdict(config))})
