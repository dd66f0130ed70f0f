"""From words to a config: a flag for each field of a config dataclass, under its own name and its aliases."""

from __future__ import annotations

import dataclasses
import re
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_type_hints

from docstring_parser import parse_from_object
from jsonargparse import ActionYesNo, ArgumentParser, DefaultHelpFormatter

from diffalign.core.errors import did_you_mean
from diffalign.core.keys import default_of
from diffalign.core.specs import Spec
from diffalign.core.trust import reaching, trusted, unmarked, untrusted
from diffalign.methods.config import ALIASES, TrainConfig
from diffalign.methods.config_file import load_yaml

T = TypeVar("T")


class Formatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Keeps the line breaks of descriptions and examples."""


class Parser(ArgumentParser):
    """Says one sentence and the nearest flag, instead of a page of usage."""

    def error(self, message: str, ex: Exception | None = None) -> Any:  # noqa: ARG002  # jsonargparse's signature
        """Exit with status 2."""
        flags = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        unknown = re.search(r"nrecognized arguments: (--[\w\-.]+)", message)
        hint = did_you_mean(unknown.group(1), flags) if unknown else ""
        sys.stderr.write(f"{self.prog}: error: {' '.join(message.split()).rstrip('.')}.{hint} See --help.\n")
        sys.exit(2)


def parse(config: type[T], words: Sequence[str], *, prog: str, epilog: str) -> T:
    """Return the config that `words` mean. Exits with status 2 for a flag that is none, and with 0 after --help.

    A training config may come from a YAML file, `--config`, whose keys are defaults for the flags.
    """
    parser = parser_of(config, prog, epilog)
    path = _config_path(words) if issubclass(config, TrainConfig) else None
    file: Mapping[str, Any] = {} if path is None else unmarked(load_yaml(path))
    parser.set_defaults(dict(file))
    for action in parser._actions:
        if action.nargs == "?" and action.dest in file:
            action.const = file[action.dest]  # the flag standing alone does not take back what the file says
    parsed = parser.parse_args(list(words)).as_dict()
    values = {name: value for name, value in parsed.items() if name in get_type_hints(config)}
    return config(**flattened(config, _marked(values, file, words, trust=bool(parsed.get("trust_scorers")))))


def _marked(values: dict[str, Any], file: Mapping[str, Any], words: Sequence[str], *, trust: bool) -> dict[str, Any]:
    """Return `values` of which those of a config file are untrusted (see `core.trust`), but for specs that a flag names, too."""
    from_file = {name: values[name] for name in file if not any(_has_flag(words, flag) for flag in _flags(name))}
    if trust:
        return values | trusted(from_file)
    named = list(reaching([value for name, value in values.items() if name not in from_file]))
    return values | untrusted(from_file, but=named)


def _flags(name: str) -> list[str]:
    """Return how a key is called on the command line."""
    return [f"--{name}", *(f"--{alias}" for alias, key in ALIASES.items() if key == name)]


def _has_flag(words: Sequence[str], flag: str) -> bool:
    return any(word == flag or word.startswith(f"{flag}=") for word in words)


def parser_of(config: type, prog: str, epilog: str) -> Parser:
    """Return a parser with a flag for each field of `config`."""
    about = (config.__doc__ or "").strip()
    parser = Parser(prog=prog, description=about, epilog=epilog or None, formatter_class=Formatter, allow_abbrev=False)
    hints = get_type_hints(config)
    helps = {p.arg_name: " ".join((p.description or "").split()) for p in parse_from_object(config).params}
    for base in config.__mro__[1:]:
        if dataclasses.is_dataclass(base):
            helps = {p.arg_name: " ".join((p.description or "").split()) for p in parse_from_object(base).params} | helps
    for item in dataclasses.fields(config):
        parser.add_argument(*_flags(item.name), **_keywords(item, hints[item.name], helps[item.name]))
    if issubclass(config, TrainConfig):
        parser.add_argument("--config", help="YAML file with any of these keys; flags override it.")
        parser.add_argument(
            "--trust_scorers",
            action=ActionYesNo,
            default=False,
            help="Use the scorers of kind function and http that the config file names: they run code, or send prompts and pictures to a "
            "server. Those that flags name are used without this word.",
        )
    return parser


def _keywords(item: dataclasses.Field[Any], hint: Any, about: str) -> dict[str, Any]:
    """Return how a field becomes a flag."""
    keywords: dict[str, Any] = {"help": about.replace("%", "%%")}
    default = default_of(item)
    if default is dataclasses.MISSING:
        keywords["required"] = True
    else:
        keywords["default"] = default
    if hint == list[str]:
        keywords |= {"nargs": "+", "type": str}
    elif hint == list[Spec]:
        keywords |= {"nargs": "+", "type": list[Spec] | Spec}
    elif hint is bool:
        keywords |= {"action": ActionYesNo}
    else:
        keywords["type"] = hint
    if "bare" in item.metadata:  # the flag may stand alone
        keywords |= {"nargs": "?", "const": item.metadata["bare"]}
    return keywords


def flattened(config: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return parsed values with lists of specs in one piece: `pickscore hps` and `[pickscore, hps]` mean the same."""
    hints = get_type_hints(config)
    return {name: _flat(value) if hints[name] == list[Spec] else value for name, value in values.items()}


def _flat(values: Sequence[Spec | list[Spec]]) -> list[Spec]:
    return [spec for value in values for spec in (value if isinstance(value, list) else [value])]


def plain(config: Any, kind: type[T]) -> T:
    """Return the fields of a config that its base class `kind` has, as such a one."""
    return kind(**{item.name: getattr(config, item.name) for item in dataclasses.fields(kind)})  # pyright: ignore[reportArgumentType]


def _config_path(words: Sequence[str]) -> str | None:
    """Return the value of `--config`: its keys become defaults before the flags are parsed."""
    for position, word in enumerate(words):
        if word == "--config" and position + 1 < len(words):
            return words[position + 1]
        if word.startswith("--config="):
            return word.split("=", 1)[1]
    return None
