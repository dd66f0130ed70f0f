"""Values of configuration keys: YAML files, flags and Python go through one function, which keeps to the annotation of the key."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from diffalign.core.documents import parse_yaml
from diffalign.core.errors import ConfigError, nearest, shortened
from diffalign.core.trust import Untrusted, unmarked

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
    return key_value(flag, hint, unmarked(parse_yaml(word, flag)) if structured and word.lstrip()[:1] in ("{", "[") else word)


def check_types(config: Any) -> None:
    """Raise ConfigError for the first key of a config (made in Python) whose value is of another type than its annotation states."""
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if key_value(name, hint, value) != with_home(value):
            raise ConfigError(f"`{name}` is {shortened(repr(value))}; expected {expected(hint)}")


def fitted(hint: Any, value: Any) -> Any:
    """Return `value` in the type of `hint`. Raises UnfitError where it has another."""
    choices = options(hint)
    literal = [choice for option in choices if get_origin(option) is Literal for choice in get_args(option)]
    if value is None or (isinstance(value, str) and value in NOTHING and not literal):
        if NoneType in choices or hint is Any:
            return None
        if value is None:
            raise UnfitError(expected(hint))
    kept = [option for option in choices if option is not NoneType]
    if len(kept) == 1 and not literal:
        return _as(kept[0], value)
    for option in kept:
        with contextlib.suppress(UnfitError):
            return _as(option, value)
    near = nearest(str(value), literal)
    raise UnfitError(expected(hint) + (f". Did you mean `{near}`?" if near else ""))


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


def _as(option: Any, value: Any) -> Any:
    """Return a value as one plain option of an annotation. Raises UnfitError where it is none."""
    kind = get_origin(option)
    if option is Any:
        return with_home(value)
    if kind is Literal and value in get_args(option) and type(value) in map(type, get_args(option)):
        return value
    if kind is list:
        return _list(option, value)
    if kind in (dict, Mapping) and isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        with contextlib.suppress(UnfitError):
            return _like(value, {name: fitted(get_args(option)[1], item) for name, item in value.items()})
    if option in PLAIN:
        return PLAIN[option](value)
    raise UnfitError(expected(option))


def _list(option: Any, value: Any) -> list[Any]:
    """Return a list of what the annotation says."""
    if isinstance(value, str):
        raise UnfitError(f"a list, [{value}]")
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise UnfitError(expected(option))
    try:
        return [fitted(get_args(option)[0], item) for item in value]
    except UnfitError as error:
        raise UnfitError(expected(option)) from error


def _switch(value: Any) -> bool:
    """Return true or false: a bool, or a word for one."""
    word = str(value).lower()
    if not isinstance(value, bool | int | str) or word not in SWITCH:
        raise UnfitError(NAMES[bool])
    return SWITCH[word]


def _number(value: Any) -> float:
    """Return a finite number, or the one that a text spells."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise UnfitError(NAMES[float])
    try:
        number = float(value)
    except (ValueError, OverflowError) as error:
        raise UnfitError(NAMES[float]) from error
    if not math.isfinite(number):
        raise UnfitError(NAMES[float])
    return number


def _whole(value: Any) -> int:
    """Return a whole number: 8, "8", and 1e3, which YAML has as a float."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        number = _number(value)
    except UnfitError as error:
        raise UnfitError(NAMES[int]) from error
    if number != int(number):
        raise UnfitError(NAMES[int])
    return int(value) if isinstance(value, str) and value.strip().lstrip("+-").isdecimal() else int(number)


def _text(value: Any) -> str:
    """Return a text or a path as text, `~` resolved."""
    if not isinstance(value, str | Path):
        raise UnfitError(f"text; write it in quotes, '{value}'" if isinstance(value, bool | int | float) else NAMES[str])
    return with_home(str(value))


def with_home(value: Any) -> Any:
    """Return a value with `~` at the beginning of its texts as the home folder, as a shell would have it.

    >>> with_home(["~/votes", "a cat ~"])[1]
    'a cat ~'
    """
    if isinstance(value, str):
        return os.path.expanduser(value) if value == "~" or value.startswith(("~/", "~\\")) else value  # noqa: PTH111  # text stays text
    if isinstance(value, list | tuple):
        return [with_home(item) for item in value]
    return _like(value, {name: with_home(item) for name, item in value.items()}) if isinstance(value, Mapping) else value


def _like(value: Mapping[Any, Any], made: dict[Any, Any]) -> dict[Any, Any]:
    """Return `made` marked as read from a file where `value` is: see `core.trust`."""
    return Untrusted(made) if isinstance(value, Untrusted) else made


NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Any: "anything"}
PLAIN = {bool: _switch, int: _whole, float: _number, str: _text}
