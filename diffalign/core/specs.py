"""Specs, by which configs and methods name parts: a name, or {name: {constant: value}}; checked against the function's signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from diffalign.core.errors import ConfigError, did_you_mean, shortened

Spec = str | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Bound:
    """A function of a table with its constants; calling it passes them on."""

    name: str
    given: Mapping[str, Any]  # the constants that the spec wrote down
    constants: Mapping[str, Any]  # all of them, defaults too
    function: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        """Return what the function says of `args` with these constants."""
        return self.function(*args, **self.constants)

    @property
    def spec(self) -> dict[str, dict[str, Any]]:
        """Return {name: constants}, as it was written."""
        return {self.name: dict(self.given)}


def bind(kind: str, table: Mapping[str, Callable[..., Any]], spec: Spec, **defaults: Any) -> Bound:
    """Return the function of `table` that `spec` names, with its constants.

    A spec is a name, or {name: {constant: value}}. `defaults` fill constants that the spec does not give, where the function has
    them. Raises ConfigError for an unknown name or constant, and for a constant that is missing.

    >>> bind("step", {"shift": lambda x, *, by=1: x + by}, {"shift": {"by": 2}})(1)
    3
    """
    name, written = single(kind, spec)
    if name not in table:
        raise ConfigError(f"there is no {kind} `{name}`.{did_you_mean(name, table)}")
    accepted = {n: p for n, p in inspect.signature(table[name]).parameters.items() if p.kind is p.KEYWORD_ONLY}
    for constant in written:
        if constant not in accepted:
            raise ConfigError(f"{kind} `{name}` takes no `{constant}`.{did_you_mean(constant, accepted)}")
    _check_types(kind, name, table[name], written)
    constants = {n: p.default for n, p in accepted.items() if p.default is not p.empty}
    constants |= {n: v for n, v in defaults.items() if n in accepted and v is not None} | dict(written)
    if missing := [n for n in accepted if n not in constants]:
        raise ConfigError(f"{kind} `{name}` needs `{missing[0]}`; give it as {{{name}: {{{missing[0]}: ...}}}}")
    return Bound(name, written, constants, table[name])


def single(kind: str, spec: Spec) -> tuple[str, Mapping[str, Any]]:
    """Return the name and the constants of a spec. Raises ConfigError for anything that is not one name with its constants."""
    if isinstance(spec, str):
        return spec, {}
    if isinstance(spec, Mapping) and len(spec) == 1:
        name, constants = next(iter(spec.items()))
        if isinstance(name, str) and (constants is None or (isinstance(constants, Mapping) and all(isinstance(c, str) for c in constants))):
            return name, constants or {}
    raise ConfigError(f"`{kind}` is written as a name or as {{name: {{constant: value}}}}; found {shortened(repr(spec))}")


KINDS: dict[Any, tuple[type, ...]] = {float: (int, float), int: (int,), bool: (bool,), str: (str,), NoneType: (NoneType,)}


def _check_types(kind: str, name: str, function: Callable[..., Any], constants: Mapping[str, Any]) -> None:
    """Raise ConfigError for a constant of another type than its annotation says, or not among the values that it lists."""
    scope = {"Tensor": Any, "Scores": Any, **vars(inspect.getmodule(function))}  # what is imported for type checkers only
    hints = get_type_hints(function, scope)
    for constant, value in constants.items():
        hint = hints.get(constant, Any)
        options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        if any(_fits(value, option) for option in options):
            continue
        if listed := [choice for option in options if get_origin(option) is Literal for choice in get_args(option)]:
            raise ConfigError(f"{kind} `{name}`: `{constant}` is {value!r}.{did_you_mean(str(value), listed)}")
        expected = " or ".join(option.__name__ for option in options if option is not NoneType)
        raise ConfigError(f"{kind} `{name}`: `{constant}` is {value!r}; expected {expected}")


def _fits(value: Any, option: Any) -> bool:
    """Return whether one option of an annotation allows a value; what is neither a list of values nor a plain type allows any."""
    if get_origin(option) is Literal:
        return value in get_args(option)
    types = KINDS.get(option)
    return types is None or (isinstance(value, types) and (bool in types or not isinstance(value, bool)))
