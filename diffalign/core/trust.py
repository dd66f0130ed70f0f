"""What a file may name: everything, but a scorer that runs code or contacts a server is used only where the user asks for it.

The readers of `core.documents` return every mapping of a file as `Untrusted`, and what binds scorers refuses such a mapping where it is
one of `REACHING`. What stands on the command line or in Python are plain dicts, which may name any scorer.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from diffalign.core.errors import ConfigError
from diffalign.core.redaction import redacted

logger = logging.getLogger(__name__)
# Scorers that reach beyond this package, and the constant that says where to.
REACHING = {"function": "path", "http": "url", "vlm": "url"}
CURE = "a file may name it, but it is used only where you name it yourself (on the command line or in Python) or give --trust_scorers"


class Untrusted(dict[Any, Any]):
    """A mapping that was read from a file."""


def untrusted(value: Any, but: Sequence[Any] = ()) -> Any:
    """Return `value` with every mapping in it as `Untrusted`, save those that are equal to one of `but`."""
    if isinstance(value, Mapping):
        if value in but:
            return unmarked(value)
        return Untrusted({name: untrusted(inner, but) for name, inner in value.items()})
    if isinstance(value, list | tuple):
        return type(value)(untrusted(inner, but) for inner in value)
    return value


def trusted(value: Any) -> Any:
    """Return `value` as if the user had written it, and log what it makes run or contacts."""
    for spec in reaching(value):
        logger.warning("trusted: %s", in_words(spec))
    return unmarked(value)


def unmarked(value: Any) -> Any:
    """Return a copy of `value` in plain dicts, as what stands on the command line or in Python has."""
    if isinstance(value, Mapping):
        return {name: unmarked(inner) for name, inner in value.items()}
    return type(value)(map(unmarked, value)) if isinstance(value, list | tuple) else value


def is_untrusted(value: Any) -> bool:
    """Return whether any mapping within `value` was read from a file."""
    if isinstance(value, Mapping):
        return isinstance(value, Untrusted) or any(map(is_untrusted, value.values()))
    return isinstance(value, list | tuple) and any(map(is_untrusted, value))


def reaching(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yield every mapping within `value` that names a scorer of `REACHING`, at any depth.

    >>> list(reaching({"scorers": ["hps", {"http": {"url": "http://host"}}]}))
    [{'http': {'url': 'http://host'}}]
    """
    if isinstance(value, Mapping):
        if any(_reaches(name, value[name]) for name in REACHING.keys() & value.keys()):
            yield value
        for inner in value.values():
            yield from reaching(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from reaching(inner)


def _reaches(name: str, constants: Any) -> bool:
    """Return whether a scorer of `REACHING` does so with these constants: a `vlm` without an address runs here, and no code of its own."""
    return name != "vlm" or (isinstance(constants, Mapping) and constants.get("url") is not None)


def refused(value: Any) -> Mapping[str, Any] | None:
    """Return the first scorer within `value` that reaches beyond this package and was read from a file; None if there is none."""
    return next((spec for spec in reaching(value) if is_untrusted(spec)), None)


def refuse(value: Any) -> None:
    """Raise ConfigError where `value` holds such a scorer."""
    if (spec := refused(value)) is not None:
        raise ConfigError(f"this scorer was read from a file and {in_words(spec)}; {CURE}")


def in_words(spec: Mapping[str, Any]) -> str:
    """Return what a scorer of `REACHING` does: which code it runs, or where it sends prompts and pictures."""
    name = next(name for name in REACHING if name in spec and _reaches(name, spec[name]))
    constants = spec[name] if isinstance(spec[name], Mapping) else {}
    where = redacted(str(constants.get(REACHING[name])))[:200]
    return f"runs the code of {where!r}" if name == "function" else f"sends prompts and pictures to {where!r}"
