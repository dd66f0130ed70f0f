"""What a prompt asks for that tools can check: things, how many, their colours and places, and a text.

The structure is that of GenEval's metadata (2310.11513, djghosh13/geneval): things to `include` with class, count, colour and a position
relative to an earlier thing, and things to `exclude`. Prompts are read by a small grammar, GenEval's metadata as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffalign.core.errors import ConfigError
from diffalign.data.world import scenes

NUMBERS = {word: number for number, word in enumerate(["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"], 1)}
ARTICLES = {"a": 1, "an": 1, "the": 1}
COLORS = scenes.COLORS | {name: scenes.BACKGROUNDS[name] for name in ("black", "gray", "white")}
COLORS |= {"cyan": (50, 200, 215), "brown": (120, 75, 40)}
PLACES = {name: (x / scenes.SIZE, y / scenes.SIZE) for name, (x, y) in scenes.POSITIONS.items()}  # in shares of the side
RELATIONS = ("left of", "right of", "above", "below")
IRREGULAR = {"people": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse", "knives": "knife", "sheep": "sheep"}
RELATION = re.compile(r"^(?:(?:to|on) the )?(left of|right of)\b|^(above|below)\b")
PLACE = re.compile(r"^(?:at|on|in) the (left|right|top|bottom|center|middle)\b(?! of)")
GROUND = re.compile(r"\b(?:on|against|in front of) an? \w+ background\b")
NONE = ("no", "without")  # before what a picture must not show
QUOTED = re.compile(r"[\"\u201c]([^\"\u201d]+)[\"\u201d]")
ENDS = "saying says reading reads holding wearing sitting standing and with on in at of to left right above below that next is are"
MEDIA = "photo photograph picture image painting drawing illustration rendering sketch"
STOP = {*ENDS.split(), *MEDIA.split(), *NONE}  # words that end the name of a thing


@dataclass(frozen=True, slots=True)
class Wanted:
    """A kind of thing that a picture is to show."""

    label: str
    count: int = 1
    color: str | None = None
    place: str | None = None  # in the picture, one of PLACES
    relation: tuple[str, int] | None = None  # one of RELATIONS, and the place of the other thing among those wanted


@dataclass(frozen=True, slots=True)
class Requirements:
    """What a picture is to show."""

    include: tuple[Wanted, ...] = ()
    exclude: tuple[tuple[str, int], ...] = ()  # so many of a kind, or more, are wrong
    text: str | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the kinds of things to look for, each once."""
        return tuple(dict.fromkeys([*_labels(self.include), *(label for label, _ in self.exclude)]))


def parse(prompt: str, labels: Sequence[str] | None = None) -> Requirements:
    """Return what a prompt asks for; with `labels` only these things are looked for, longer names first, else whatever follows an article.

    A number word asks for exactly so many, `no` and `without` for none. What no tool can check is left out; a prompt of nothing else asks
    for nothing.

    >>> parse("a photo of two dogs and a red car left of a bench", ["dog", "car", "bench"]).include[1:]
    (Wanted(label='car', count=1, color='red', place=None, relation=('left of', 2)), Wanted(label='bench', count=1, color=None, ...
    """
    text = QUOTED.search(prompt)
    rest = GROUND.sub(" ", QUOTED.sub(" ", prompt).lower())
    words = re.findall(r"[a-z]+", rest)
    include: list[Wanted] = []
    absent: list[str] = []
    counted: set[str] = set()
    pending: tuple[int, str] | None = None
    at = 0
    while at < len(words):
        ahead = " ".join(words[at:])
        if (relation := RELATION.match(ahead)) and include:
            pending = (len(include) - 1, relation[1] or relation[2])
            at += len(relation[0].split())
        elif (place := PLACE.match(ahead)) and include:
            include[-1] = _with(include[-1], place="center" if place[1] == "middle" else place[1])
            at += len(place[0].split())
        elif (missing := _missing(words, at, labels)) is not None:
            label, at = missing
            absent.append(label)
        elif (thing := _thing(words, at, labels)) is not None:
            wanted, exact, at = thing
            include.append(wanted)
            counted |= {wanted.label} if exact else set()
            if pending is not None:
                include[pending[0]] = _with(include[pending[0]], relation=(pending[1], len(include) - 1))
                pending = None
        else:
            at += 1
    exclude = [(label, sum(one.count for one in include if one.label == label) + 1) for label in _labels(include) if label in counted]
    exclude += [(label, 1) for label in dict.fromkeys(absent)]
    return Requirements(tuple(include), tuple(exclude), text[1].strip() if text else None)


def _missing(words: Sequence[str], at: int, labels: Sequence[str] | None) -> tuple[str, int] | None:
    """Return the thing that a picture must not show, and where the text goes on; None where there is no `no` or `without` of a thing."""
    if words[at] not in NONE:
        return None
    return _label(words, at + 1 + (words[at + 1 : at + 2] in (["a"], ["an"], ["any"])), labels)


def _labels(include: Sequence[Wanted]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(wanted.label for wanted in include))


def _absent(words: Sequence[str], at: int, labels: Sequence[str] | None) -> tuple[str, int] | None:
    """Return what must not be shown, and where its name ends, where `no` or `without` stands; else None."""
    if words[at] not in NONE:
        return None
    return _label(words, at + 2 if words[at + 1 : at + 2] in (["a"], ["an"], ["any"]) else at + 1, labels)


def _thing(words: Sequence[str], at: int, labels: Sequence[str] | None) -> tuple[Wanted, bool, int] | None:
    """Return the thing that begins at a word, whether its number is exact, and where it ends; None where none begins there."""
    count = NUMBERS.get(words[at]) or ARTICLES.get(words[at])
    exact, here = words[at] in NUMBERS, at + (count is not None)
    color = None
    while here < len(words) and (words[here] in COLORS or words[here] in ("large", "small", "grey")):
        color = {"grey": "gray"}.get(words[here], words[here]) if words[here] not in ("large", "small") else color
        here += 1
    if labels is None and count is None:
        return None
    named = _label(words, here, labels)
    if named is None:
        return None
    label, end = named
    return Wanted(label, count or 1, color), exact, end


def _label(words: Sequence[str], at: int, labels: Sequence[str] | None) -> tuple[str, int] | None:
    """Return the name of a thing that stands at a word, in the singular, and where it ends."""
    if labels is not None:
        names = {label.lower(): label for label in labels}
        for length in (3, 2, 1):
            name = " ".join(words[at : at + length])
            if label := names.get(name) or names.get(singular(name)):
                return label, min(at + length, len(words))
        return None
    end = at
    while end < len(words) and words[end] not in STOP and words[end] not in ARTICLES and words[end] not in NUMBERS:
        end += 1
    return (singular(" ".join(words[at:end])), end) if end > at else None


def singular(name: str) -> str:
    """Return the singular of an English noun, by its ending.

    >>> [singular(name) for name in ("dogs", "benches", "wine glasses", "people", "bus")]
    ['dog', 'bench', 'wine glass', 'person', 'bus']
    """
    *before, last = name.split(" ")
    if last in IRREGULAR:
        last = IRREGULAR[last]
    elif re.search(r"(?:ch|sh|ss|x)es$", last):
        last = last[:-2]
    elif last.endswith("ies"):
        last = f"{last[:-3]}y"
    elif last.endswith("s") and not last.endswith(("ss", "us", "is")):
        last = last[:-1]
    return " ".join([*before, last])


def _with(wanted: Wanted, *, place: str | None = None, relation: tuple[str, int] | None = None) -> Wanted:
    return Wanted(wanted.label, wanted.count, wanted.color, place or wanted.place, relation or wanted.relation)


def from_geneval(row: Mapping[str, Any], where: str) -> Requirements:
    """Return what a line of GenEval's metadata asks for. Raises ConfigError for one of another form."""
    try:
        include = [
            Wanted(str(one["class"]), int(one.get("count", 1)), one.get("color"), None, _position(one.get("position"), len(row["include"])))
            for one in row["include"]
        ]
        exclude = tuple((str(one["class"]), int(one["count"])) for one in row.get("exclude") or ())
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ConfigError(f"{where}: expected GenEval's `include`, a list of {{class, count, color, position}} ({error})") from error
    return Requirements(tuple(include), exclude)


def _position(value: Any, count: int) -> tuple[str, int] | None:
    if value is None:
        return None
    relation, other = str(value[0]), int(value[1])
    if relation not in RELATIONS or not 0 <= other < count:
        raise ValueError(f"position is {value}")
    return relation, other
