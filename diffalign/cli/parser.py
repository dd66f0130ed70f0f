"""From words to a config: a flag for each field of a config dataclass, under its own name and its aliases."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import re
import sys
from argparse import SUPPRESS, ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator, Mapping, Sequence
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from docstring_parser import parse_from_object

from diffalign.core.errors import ConfigError
from diffalign.core.keys import default_of, keys_for
from diffalign.core.trust import reaching, trusted, untrusted
from diffalign.core.values import key_value, options, word_value
from diffalign.methods.config import ALIASES, SECTIONS, SYNONYMS, TrainConfig
from diffalign.methods.config_file import load_yaml, on_top
from diffalign.methods.other_programs import Translation, cure, differences, translate

T = TypeVar("T")
logger = logging.getLogger(__name__)
TRUST = "trust_scorers"
TRUST_HELP = """Use the scorers of kind function and http that the config file names: they run code, or send prompts and pictures to a
server. Those that flags name are used without this word."""
ALONE = "\0"  # a flag that stands without a value
END_OF_SENTENCE = re.compile(r"(?<=[^.]\.)\s+(?=[A-Z`])")


class Formatter(RawDescriptionHelpFormatter):
    """Keeps the line breaks of descriptions and examples, and has room for long names."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=128)


class Parser(ArgumentParser):
    """Says one sentence instead of a page of usage."""

    def error(self, message: str) -> Any:
        """Exit with status 2."""
        sys.stderr.write(f"{self.prog}: error: {' '.join(message.split()).rstrip('.')}. See --help.\n")
        sys.exit(2)


def parse(config: type[T], words: Sequence[str], *, prog: str, epilog: str) -> T:
    """Return the config that `words` mean. Exits with status 2 for a flag that is none, and with 0 after --help.

    A training config may come from a YAML file, `--config`; flags count more than its keys. Flags of diffusers' DPO scripts and of
    `trl dpo` are translated, and what is done with each is logged. Raises ConfigError for a value that does not fit its key.
    """
    words = [_underscored(word) for word in words]
    parser = parser_of(config, prog, epilog, everything="--help_all" in words)
    hints = get_type_hints(config)
    parsed, rest = parser.parse_known_args(words)
    flags = {name: _value(hints[name], name, value) for name, value in vars(parsed).items() if name in hints}
    flags |= _translated(parser, config, rest, flags, words)
    required = [item.name for item, _ in _in_sections(config) if default_of(item) is dataclasses.MISSING]
    if missing := [f"--{name}" for name in required if name not in flags]:
        parser.error(f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} needed")
    _refuse_conflicts(flags)
    trust = word_value(f"--{TRUST}", bool, vars(parsed).get(TRUST, "false"))
    file = load_yaml(parsed.config) if "config" in parsed else {}
    file = trusted(file) if trust else untrusted(file, but=list(reaching(list(flags.values()))))  # a flag may name one, too
    bare = {item.name: item.metadata["bare"] for item, _ in _in_sections(config) if "bare" in item.metadata}
    # A flag that stands alone does not take back what the file says.
    alone = {name: file.get(name, bare[name]) for name, value in flags.items() if value == ALONE}
    return config(**on_top(file, flags | alone))


def parser_of(config: type, prog: str, epilog: str, *, everything: bool = True) -> Parser:
    """Return a parser with a flag for each field of `config`. Without `everything` its help shows the keys marked for it alone."""
    about = (config.__doc__ or "").strip()
    usage = f"{prog} [flags]" if not issubclass(config, TrainConfig) else f"{prog} [--config FILE] [flags]"
    parser = Parser(prog=prog, usage=usage, description=about, epilog=epilog or None, add_help=False, allow_abbrev=False)
    parser.formatter_class = Formatter
    hints, helps, groups = get_type_hints(config), _helps(config), {}
    essential = keys_for(config, "help")
    for item, section in _in_sections(config):
        group = groups.setdefault(section, parser.add_argument_group(section))
        shown = everything or not essential or item.name in essential or section == "command"
        names = [f"--{item.name}", *(f"--{alias}" for alias, name in ALIASES.items() if name == item.name)]
        text = _help(item, helps[item.name] if everything or not essential else END_OF_SENTENCE.split(helps[item.name])[0])
        group.add_argument(*names, help=text if shown else SUPPRESS, dest=item.name, default=SUPPRESS, **_form(item, hints[item.name]))
        if bool in options(hints[item.name]):
            group.add_argument(f"--no_{item.name}", help=SUPPRESS, dest=item.name, default=SUPPRESS, action="store_const", const="false")
    general = parser.add_argument_group("general")
    if issubclass(config, TrainConfig):
        general.add_argument("--config", metavar="FILE", default=SUPPRESS, help="YAML file with any of these keys; flags count more.")
        general.add_argument(f"--{TRUST}", metavar="BOOL", nargs="?", const="true", default=SUPPRESS, help=TRUST_HELP)
    rare = " without the flags for rare cases" if essential and not everything else ""
    general.add_argument("-h", "--help", action="help", help=f"Show this help{rare}. Switches also take true or false, and --no_NAME.")
    all_of_it = "Show every flag, with all that is to say about it." if essential else SUPPRESS
    general.add_argument("--help_all", action="help", help=all_of_it)
    return parser


def _in_sections(config: Any) -> Iterator[tuple[dataclasses.Field[Any], str]]:
    """Yield the fields of a config with the title of their group; what has to be there comes first."""
    fields = dataclasses.fields(config)
    if not issubclass(config, TrainConfig):
        required = [item for item in fields if default_of(item) is dataclasses.MISSING]
        yield from ((item, "required") for item in required)
        yield from ((item, "flags") for item in fields if item not in required)
        return
    keys, section = {item.name for item in dataclasses.fields(TrainConfig)}, ""
    yield from ((item, "command") for item in fields if item.name not in keys)
    for item in fields:
        section = SECTIONS.get(item.name, section)
        if item.name in keys:
            yield item, section


@functools.cache
def _helps(config: type) -> dict[str, str]:
    """Return the docstrings of the fields."""
    texts: dict[str, str] = {}
    for base in reversed(config.__mro__):
        if dataclasses.is_dataclass(base):
            texts |= {p.arg_name: " ".join((p.description or "").split()) for p in parse_from_object(base).params}
    return texts


def _help(item: dataclasses.Field[Any], text: str) -> str:
    """Return the help of a field, with its default where that says something."""
    default = default_of(item)
    shown = default is not dataclasses.MISSING and default is not False and default not in (None, "", [], {})
    text = text if text.endswith(".") else f"{text}."
    return (f"{text} Default: {str(default).lower() if default is True else default}." if shown else text).replace("%", "%%")


def _form(item: dataclasses.Field[Any], hint: Any) -> dict[str, Any]:
    """Return how many words a flag takes, and what the help calls them."""
    form: dict[str, Any] = {"metavar": _metavar(hint)}
    if bool in options(hint):
        return form | {"nargs": "?", "const": "true"}
    if "bare" in item.metadata:
        return form | {"nargs": "?", "const": ALONE}
    return form | ({"nargs": "+"} if _list_of(hint) is not None else {})


def _metavar(hint: Any) -> str:
    for option in options(hint):
        if get_origin(option) is Literal:
            choices = ("true", "false", *get_args(option)) if bool in options(hint) else get_args(option)
            return "{" + ",".join(map(str, choices)) + "}"
    names = {bool: "BOOL", int: "N", float: "X", str: "TEXT"}
    plain = [names[option] for option in options(hint) if option in names]
    if _list_of(hint) is not None:
        return "TEXT" if _list_of(hint) is str else "SPEC"
    return "SPEC" if len(options(hint)) > 1 and plain == ["TEXT"] and len(set(options(hint)) - {NoneType}) > 1 else (plain or ["YAML"])[0]


def _list_of(hint: Any) -> Any:
    """Return what a key is a list of; None for one that is no list."""
    return next((get_args(option)[0] for option in options(hint) if get_origin(option) is list), None)


def _value(hint: Any, name: str, words: Any) -> Any:
    """Return the value of a key from the words behind its flag: of lists, any number of them, or one `[a, b]`."""
    element = _list_of(hint)
    if words == ALONE:
        return ALONE
    if element is None:
        return word_value(f"--{name}", hint, words) if isinstance(words, str) else key_value(f"--{name}", hint, words)
    words = [words] if isinstance(words, str) else words
    if words == ["null"] and NoneType in options(hint):
        return None
    values: list[Any] = []
    for word in words:
        # Prompts may begin with a bracket; names and specs do not.
        flow = word.startswith("[") and (element is not str or NoneType in options(hint))
        values += word_value(f"--{name}", list[element], word) if flow else [word_value(f"--{name}", element, word)]
    return values


def _translated(parser: Parser, config: type, rest: Sequence[str], flags: Mapping[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """Return the keys that flags of other programs stand for, and log what is done with each; exits for what stands for nothing."""
    strays, others = _paired(rest)
    hints = get_type_hints(config)
    training = issubclass(config, TrainConfig)
    result = translate(others, hints, steps="max_train_steps" in flags) if training else Translation()
    if not training:
        result.problems += [f"--{name} is no flag.{cure(name, hints, flags=True)}" for name in others]
    result.problems += [f"`{word}` stands behind no flag that takes it; write --NAME before it." for word in strays]
    twice = [name for name in result.values if name in flags]
    result.problems += [f"--{name} is given twice, once as another program has it." for name in twice]
    if result.problems:
        end = "" if len(result.problems) > 1 else f" See {parser.prog} --help."
        sys.stderr.write("".join(f"{parser.prog}: error: {problem}{end}\n" for problem in result.problems))
        sys.exit(2)
    values = {name: _value(hints[name], name, value) for name, value in result.values.items()}
    written = [word[2:].split("=")[0] for word in words if word.startswith("--")]
    if training and int(os.environ.get("RANK", "0")) == 0:
        for line in (*result.notes, *differences(written, {*flags, *values})):
            logger.info("%s", line)
    return values


def _paired(rest: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Return the words that belong to no flag, and the unknown flags with the words behind them."""
    strays: list[str] = []
    others: dict[str, list[str]] = {}
    current = strays
    for position, word in enumerate(rest):
        if word == "--":
            return [*strays, *rest[position + 1 :]], _joined(others)
        if word.startswith("-") and not word[1:2].isdecimal():
            name, sign, value = word.lstrip("-").partition("=")
            current = others[name] = [value] if sign else []
        else:
            current.append(word)
    return strays, _joined(others)


def _joined(others: Mapping[str, list[str]]) -> dict[str, Any]:
    """Return the words of each flag: one of them alone, none as those of a switch."""
    return {name: words[0] if len(words) == 1 else words or "true" for name, words in others.items()}


def _refuse_conflicts(flags: Mapping[str, Any]) -> None:
    """Raise ConfigError for two flags that choose one thing differently."""
    for switch, (name, value) in SYNONYMS.items():
        if flags.get(switch) and name in flags and flags[name] != value:
            raise ConfigError(f"`--{switch}` and `--{name} {flags[name]}` choose differently; leave one out, or write --no_{switch}")


def _underscored(word: str) -> str:
    """Return a flag with underscores, as the keys have them: --learning-rate is --learning_rate."""
    name, sign, value = word.partition("=")
    return name[:2] + name[2:].replace("-", "_") + sign + value if re.fullmatch(r"--[A-Za-z][\w-]*", name) else word


def plain(config: Any, kind: type[T]) -> T:
    """Return the fields of a config that its base class `kind` has, as such a one."""
    return kind(**{item.name: getattr(config, item.name) for item in dataclasses.fields(kind)})  # pyright: ignore[reportArgumentType]  # a dataclass
