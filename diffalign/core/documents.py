"""The strict readers of JSON and YAML files, whose errors are one sentence that names the file.

Refused are deep nesting, YAML aliases that multiply, keys that stand twice, numbers beyond 64 bits, and text that is no Unicode. Every
mapping is an `Untrusted` one: see `core.trust`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from diffalign.core.errors import ConfigError, DiffalignError, shortened
from diffalign.core.trust import Untrusted

WORDS: dict[type, str] = {str: "a text", int: "a whole number", float: "a number", dict: "keys and values", list: "a list"}
DEPTH = 64  # levels of lists and mappings
MOST_JSON, MOST_YAML = 256_000_000, 1_000_000  # bytes; YAML is read about a hundred times slower


def read_json(file: Path, error: type[DiffalignError] = ConfigError) -> Any:
    """Return what a JSON file holds. Raises `error` for one that is missing, too large, or not strict JSON."""
    return parse_json(_bytes(file, MOST_JSON, error), str(file), error)


def read_mapping(file: Path, error: type[DiffalignError] = ConfigError) -> Untrusted:
    """Return the object that a JSON file holds. Raises `error` as `read_json` does, and for any other value."""
    return _mapping_of(read_json(file, error), str(file), error)


def parse_json(text: str | bytes, where: str, error: type[DiffalignError] = ConfigError) -> Any:
    """Return the value of a JSON text; `where` names its file (and line). Raises `error` for a text that is not strict JSON."""
    try:
        value = json.loads(text, object_pairs_hook=_mapping, parse_constant=_refuse_constant)
        _check(value)
    except RecursionError:
        raise error(f"{where}: nested too deep; expected at most {DEPTH} levels") from None
    except ValueError as why:
        raise error(f"{where}: not JSON ({shortened(str(why))})") from why
    return value


def read_yaml(file: Path, error: type[DiffalignError] = ConfigError) -> Untrusted:
    """Return the mapping that a YAML file holds, empty for an empty file. Raises `error` for any other file."""
    value = parse_yaml(_bytes(file, MOST_YAML, error), str(file), error)
    return _mapping_of(Untrusted() if value is None else value, str(file), error)


def parse_yaml(text: str | bytes, where: str, error: type[DiffalignError] = ConfigError) -> Any:
    """Return the value of a YAML text; `where` names its file or flag. Raises `error` for a text that is not strict YAML."""
    loader = None
    try:
        loader = _Loader(text if isinstance(text, str) else text.decode("utf-8-sig"))
        node = loader.get_single_node()
        if node is not None and _written_out(node, {}) > MOST_YAML:
            raise ValueError(f"its aliases stand for more than {MOST_YAML:,} characters")
        value = None if node is None else loader.construct_document(node)
        _check(value, finite=False)
    except RecursionError:
        raise error(f"{where}: nested too deep; expected at most {DEPTH} levels") from None
    except (yaml.YAMLError, ValueError) as why:
        reason = " ".join(re.sub(r'\s+in "<unicode string>"', "", str(why)).split())  # PyYAML's name for a text
        raise error(f"{where}: not YAML ({shortened(reason)})") from why
    finally:
        if loader is not None:
            loader.dispose()
    return value


def check_types(facts: Mapping[str, Any], types: Mapping[str, tuple[type, ...]], where: str, error: type[DiffalignError]) -> None:
    """Raise `error` for the first value whose type is none of those that `types` names for its key; keys may be missing, or None."""
    for name, expected in types.items():
        value = facts.get(name)
        if value is not None and (not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected)):
            words = " or ".join(WORDS.get(kind, kind.__name__) for kind in expected)
            raise error(f"{where}: `{name}` is {shortened(repr(value))}; expected {words}")


def yaml_of(value: Any) -> str:
    """Return a value of lists, mappings and scalars as YAML."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _bytes(file: Path, most: int, error: type[DiffalignError]) -> bytes:
    try:
        if file.exists() and not file.is_file():  # a folder, a pipe or a device, which would be read for ever
            raise error(f"{file}: no regular file")
        if file.stat().st_size > most:
            raise error(f"{file}: has {file.stat().st_size:,} bytes; expected at most {most:,}")
        return file.read_bytes()
    except (OSError, ValueError) as why:  # ValueError: a NUL in the name
        raise error(f"{file}: cannot be read ({getattr(why, 'strerror', None) or why})") from why


def _mapping_of(value: Any, where: str, error: type[DiffalignError]) -> Untrusted:
    if not isinstance(value, Untrusted):
        raise error(f"{where}: found a {type(value).__name__}; expected keys and values")
    return value


def _mapping(pairs: Iterable[tuple[Any, Any]]) -> Untrusted:
    """Return the mapping of `pairs`. Raises ValueError for a key that stands twice."""
    made = Untrusted()
    for name, value in pairs:
        if name in made:
            raise ValueError(f"the key {shortened(repr(name))} stands twice")
        made[name] = value
    return made


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"found {name}, which is no number")


def _check(value: Any, *, finite: bool = True) -> None:
    """Raise RecursionError or ValueError for a value that is nested too deep, a number beyond 64 bits, or text that is no Unicode."""
    left = [(value, 0)]
    while left:
        inner, depth = left.pop()
        if depth > DEPTH:
            raise RecursionError
        if isinstance(inner, dict):
            left += [(part, depth + 1) for pair in inner.items() for part in pair]
        elif isinstance(inner, list):
            left += [(part, depth + 1) for part in inner]
        elif isinstance(inner, str):
            inner.encode()  # UnicodeEncodeError, a ValueError, for half a surrogate pair
        elif isinstance(inner, int) and not -(2**63) <= inner < 2**64:
            raise ValueError(f"a number of {len(str(inner))} digits; expected one of at most 64 bits")
        elif finite and isinstance(inner, float) and not math.isfinite(inner):
            raise ValueError("a number beyond the largest of 64 bits")


def _written_out(node: yaml.Node, sizes: dict[int, float]) -> float:
    """Return how many characters a node has once its aliases are written out; infinite for one that leads back to itself."""
    if id(node) not in sizes:
        sizes[id(node)] = math.inf
        if isinstance(node, yaml.ScalarNode):
            sizes[id(node)] = 1 + len(node.value)
        else:
            parts = (part for child in node.value for part in (child if isinstance(child, tuple) else (child,)))
            sizes[id(node)] = 1 + sum(_written_out(part, sizes) for part in parts)
    return sizes[id(node)]


class _Loader(yaml.SafeLoader):
    """Reads 1e-5 as a number, off and no as words, and dates as text, as YAML 1.2 does; PyYAML speaks YAML 1.1."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Return the next node. Raises RecursionError for one that is nested too deep."""
        self.depth += 1
        if self.depth > DEPTH + 1:
            raise RecursionError
        node = super().compose_node(parent, index)  # pyright: ignore[reportArgumentType]  # the stubs forbid the root's None
        self.depth -= 1
        return node

    def construct_unique(self, node: yaml.MappingNode) -> Untrusted:
        """Return a mapping whose keys stand once each."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if odd := [key for key in keys if not isinstance(key, Hashable)]:
            raise ValueError(f"a {type(odd[0]).__name__} as a key")
        _mapping((key, None) for key in keys)
        return Untrusted(self.construct_mapping(node, deep=True))


_TAG = "tag:yaml.org,2002:"
_PLAIN = {_TAG + name for name in ("str", "int", "float", "null", "seq", "merge")}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in _PLAIN]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.yaml_constructors = {tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items() if tag in {None, *_PLAIN, _TAG + "bool"}}
_Loader.add_constructor(_TAG + "map", _Loader.construct_unique)
_Loader.add_implicit_resolver(_TAG + "bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(_TAG + "float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789"))


class _Dumper(yaml.SafeDumper):
    """Writes mappings that were read from a file like any other."""


_Dumper.add_representer(Untrusted, yaml.SafeDumper.represent_dict)
