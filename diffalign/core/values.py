"""Values of configuration keys: YAML files, flags and Python go through one function, which keeps to the annotation of the key."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from diffalign.core.documents import parse_yaml
from diffalign.core.errors import ConfigError, nearest, shortened
from diffalign.core.trust import Untrusted, is_untrusted, unmarked, untrusted

SWITCH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
NOTHING = ("null", "None", "~")


class UnfitError(ValueError):
    """A value does not fit an annotation; its text says what was expected."""


def key_value(name: str, hint: Any, value: Any) -> Any:
    """Return `value` in the type that the key's annotation states. Raises ConfigError that names the key.

    Text stands for what it says: "8" is a number where one is expected, "yes" a switch; `~` at its beginning is the home folder.

    >>> key_value("rank", int, "8"), key_value("use_ema", bool, "yes"), key_value("beta", float | None, 5000)
    (8, True, 5000.0)
    """
    try:
        return fitted(hint, value)
    except UnfitError as error:
        raise ConfigError(f"`{name}` is {shortened(repr(value))}; expected {error}") from error


def word_value(flag: str, hint: Any, word: str) -> Any:
    """Return the value that one word of the command line has for a key. Raises ConfigError that names the flag.

    >>> word_value("--objective", str | Mapping[str, Any], "{dpo: {beta: 10}}")
    {'dpo': {'beta': 10}}
    """
    structured = any(get_origin(option) in (list, dict, Mapping) for option in options(hint))
    if not structured or word.lstrip()[:1] not in ("{", "["):
        return key_value(flag, hint, word)
    value = unmarked(parse_yaml(word, flag))
    if glued := _glued(value):
        raise ConfigError(f"`{flag}`: found `{glued}`; YAML wants a blank after the colon, `{glued.replace(':', ': ', 1)}`")
    return key_value(flag, hint, value)


def _glued(value: Any) -> str | None:
    """Return the first `key:value` without a blank within a mapping, which YAML reads as a key without a value."""
    if isinstance(value, Mapping):
        parts = list(value.values())
        names = [name for name, inner in value.items() if inner is None and isinstance(name, str) and ":" in name.strip(":")]
        return next(filter(None, (*names, *map(_glued, parts))), None)
    return next(filter(None, map(_glued, value)), None) if isinstance(value, list) else None


def check_types(config: Any) -> None:
    """Raise ConfigError for the first key of a config (made in Python) whose value is of another type than its annotation states.

    Defaults are not looked at again: parsing the hundred keys that nobody set would be a tenth of a short training.
    """
    defaults = {item.name: item.default for item in dataclasses.fields(config)}
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if value is not defaults[name] and key_value(name, hint, value) != with_home(value):
            raise ConfigError(f"`{name}` is {shortened(repr(value))}; expected {expected(hint)}")


def fitted(hint: Any, value: Any) -> Any:
    """Return `value` in the type of `hint`. Raises UnfitError where it has another."""
    from jsonargparse import ArgumentError  # kept out of `import diffalign`

    optional = NoneType in options(hint) or hint is Any
    literal = [choice for option in options(hint) if get_origin(option) is Literal for choice in get_args(option)]
    if optional and (value is None or (isinstance(value, str) and value in NOTHING and not literal)):
        return None
    try:
        typed = None if value is None else _parser(hint).parse_object({"value": _spelt_out(hint, unmarked(value))}).value
    except (ArgumentError, ValueError):
        typed = None
    if typed is None:
        raise UnfitError(_instead(hint, value, literal))
    return untrusted(typed) if is_untrusted(value) else typed


@functools.cache
def _parser(hint: Any) -> Any:
    """Return the parser of one value of the type `hint`."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    return parser


def _instead(hint: Any, value: Any, literal: Sequence[str]) -> str:
    """Return what was expected instead of a value, and what to write where that is plain."""
    if isinstance(value, str) and any(get_origin(option) is list for option in options(hint)):
        return f"a list, [{value}]"
    if near := nearest(str(value), literal):
        return f"{expected(hint)}. Did you mean `{near}`?"
    quoted = str in options(hint) and isinstance(value, bool | int | float)
    return f"{expected(hint)}; write it in quotes, '{value}'" if quoted else expected(hint)


def _spelt_out(hint: Any, value: Any) -> Any:
    """Return `value` as jsonargparse reads it, where people write it otherwise: 1 for true, 1e3 for 1000, a path, `~`, a tuple.

    Raises ValueError for numbers that are not finite.
    """
    kinds = options(hint)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(value)
    if bool in kinds and isinstance(value, int | str) and str(value).lower() in SWITCH:
        return SWITCH[str(value).lower()]
    if isinstance(value, str) and {int, float} & set(kinds) and not math.isfinite(float(value)):
        raise ValueError(value)
    if int in kinds and not isinstance(value, bool) and isinstance(value, float | str) and float(value) == int(float(value)):
        return int(value) if isinstance(value, str) and value.strip().lstrip("+-").isdecimal() else int(float(value))
    return with_home(value)


def options(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the hint alone."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def expected(hint: Any) -> str:
    """Return an annotation in words: "a whole number", "lora, dora or full"."""
    words = []
    for option in options(hint):
        if get_origin(option) is Literal:
            words += [str(choice) for choice in get_args(option)]
        elif option in NAMES:
            words.append(NAMES[option])
        elif get_origin(option) is list:
            words.append("a list" if (inner := get_args(option)[0]) is Any else f"a list, each {expected(inner)}")
        elif get_origin(option) in (dict, Mapping):
            words.append("{name: {constant: value}}" if str in options(hint) else "keys and values, {key: value}")
    if str in options(hint) and len(words) > 1 and "{" in words[-1]:
        words[words.index("text")] = "a name"
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def with_home(value: Any) -> Any:
    """Return a value with `~` at the beginning of its texts as the home folder, as a shell would have it.

    >>> with_home(["~/votes", "a cat ~"])[1]
    'a cat ~'
    """
    if isinstance(value, str | Path):
        value = str(value)
        return os.path.expanduser(value) if value == "~" or value.startswith(("~/", "~\\")) else value  # noqa: PTH111  # text stays text
    if isinstance(value, list | tuple):
        return [with_home(item) for item in value]
    return _like(value, {name: with_home(item) for name, item in value.items()}) if isinstance(value, Mapping) else value


def _like(value: Mapping[Any, Any], made: dict[Any, Any]) -> dict[Any, Any]:
    """Return `made` marked as read from a file where `value` is: see `core.trust`."""
    return Untrusted(made) if isinstance(value, Untrusted) else made


NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Any: "anything"}
