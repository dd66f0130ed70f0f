"""Which of two candidates a row prefers, in the columns and words that people use for it.

Several columns may say it; they must agree. What can be read in two ways is refused, with the line of pandas that decides it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from diffalign.core.errors import RecordError
from diffalign.data.readers.base import MISSING, Row
from diffalign.data.readers.row_images import shown

VOTES = (
    *("winner", "preference", "preferred", "choice", "vote", "comparison", "better", "best", "selected", "human_preference", "label"),
    *("preferred_image", "better_image", "winner_image", "winning_image", "selected_image", "chosen_image"),
)
AMBIGUOUS = ("label",)  # where numbers may be the share of the first candidate, or the place of the better one
BEST = ("best_image_uid", "best_uid", "best_image")
TRUTH = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}
FIRST = {"a", "left", "first", "1st", "leftvote"}
SECOND = {"b", "right", "second", "2nd", "rightvote"}
TIE = {"tie", "tied", "ties", "draw", "equal", "equally", "same", "both", "neither", "none", "tievote", "bothbad", "bothbad_vote", "even"}
# Words beside the one that decides: "Image A is better", "model_b", "tie (bothbad)".
AROUND = set(
    re.findall(
        r"\w+",
        "the one vote is are they i looks more like about number nr no image img picture photo pic option side model answer response "
        "candidate output text completion better best good bad prefer preferred chosen preference",
    )
)


@dataclass(frozen=True, slots=True)
class Sides:
    """The columns of a row's two candidates, the numbers by which people call them, and whether their names say which is preferred."""

    names: tuple[str, str]
    numbers: tuple[int, int] | None = None  # 0 and 1, or 1 and 2
    by_preference: bool = False


def preference(row: Row, sides: Sides) -> float:
    """Return the share of votes for the first candidate, in [0, 1]. Raises RecordError where no column says it, or two disagree."""
    votes = dict(_votes(row, sides))
    if sides.by_preference:
        for name, vote in votes.items():
            if vote < 0.5:
                raise RecordError(
                    f"{row.where}: `{name}` is {shown(row.value[name])}, which says that `{sides.names[1]}` is the better one; "
                    f"expected a label that agrees with the names, or other names: {_rename(sides)}"
                )
        return next(iter(votes.values()), 1.0)
    if not votes:
        raise next((_not_understood(row, name, sides) for name in _voting(row, sides)), _no_preference(row, sides))
    (first, share), *others = votes.items()
    for name, other in others:
        if (share - 0.5) * (other - 0.5) < 0.0 or (share == 0.5) != (other == 0.5):
            raise RecordError(
                f"{row.where}: `{first}` is {shown(row.value[first])} and `{name}` {shown(row.value[name])}, which disagree on "
                f"whether `{sides.names[0]}` is the better one; leave out the column that is wrong"
            )
    return share


def _voting(row: Row, sides: Sides) -> list[str]:
    """Return the columns of a row that hold votes in words or numbers."""
    names = (*BEST, *VOTES, *(() if sides.by_preference else ("chosen",)))
    selections = [name for name in row.value if name not in names and _is_selection(row.value[name])]
    return [name for name in (*names, *selections) if name not in sides.names and name in row.value and row.value[name] not in MISSING]


def _is_selection(value: Any) -> bool:
    """Return whether a value is what a labelling tool writes for a comparison, under whatever name the comparison has there."""
    return isinstance(value, str | list | dict) and "selected" in str(value)[:40] and _selected(value) is not value


def _votes(row: Row, sides: Sides) -> Iterator[tuple[str, float]]:
    """Yield (column, share of the first candidate) for every column that states a preference."""
    if row.value.get("label_0") not in MISSING:
        share = _share(row, "label_0")
        yield "label_0", share
        if row.value.get("label_1") not in MISSING and abs(share + _share(row, "label_1", first=False) - 1.0) > 1e-6:
            raise RecordError(f"{row.where}: `label_0` is {share} and `label_1` {_share(row, 'label_1', first=False)}; expected a sum of 1")
    elif row.value.get("label_1") not in MISSING:
        yield "label_1", 1.0 - _share(row, "label_1", first=False)
    uids = [row.optional(f"image_{side}_uid", aliases=(f"uid_{side}",)) for side in (0, 1)]
    for name in _voting(row, sides):
        value = _selected(row.value[name])
        share = _by_uid(row, name, value, uids) if name in BEST and None not in uids else _verdict(row, name, value, sides)
        if share is not None:
            yield name, share


def _by_uid(row: Row, name: str, value: Any, uids: list[str | None]) -> float:
    if str(value) in uids:
        return 1.0 - uids.index(str(value))
    if str(value).strip().lower() in TIE:
        return 0.5
    raise RecordError(f"{row.where}: `{name}` is {shown(value)}, which is neither {uids[0]} nor {uids[1]}, the candidates' uids, nor `tie`")


def _share(row: Row, name: str, *, first: bool = True) -> float:
    """Return the share of votes for the first or the second candidate: a number in [0, 1] or per cent, true or false, A or B, or a tie."""
    value = row.value[name]
    if isinstance(value, str):
        word = value.strip().lower()
        if word in TIE:
            return 0.5
        if word in TRUTH:
            return TRUTH[word]
        if word in FIRST | SECOND:
            return float((word in FIRST) == first)
        if re.fullmatch(r"\d+([.,]\d+)?\s*%", word):
            return float(word.rstrip(" %").replace(",", ".")) / 100.0
    share = float(value) if isinstance(value, bool) else row.number(name)
    if not 0.0 <= share <= 1.0:
        raise RecordError(f"{row.where}: column `{name}` is {share}; expected a number in [0, 1] or `tie`")
    return share


def _selected(value: Any) -> Any:
    """Return what a labelling tool says was selected, in its objects or in their JSON; any other value as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return value
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, Mapping):
        value = value.get("selected", value.get("choices", value.get("choice", value)))
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _verdict(row: Row, name: str, value: Any, sides: Sides) -> float | None:
    """Return the share of the first candidate that one vote means, or None where it is not clear."""
    contents = [row.value.get(side) for side in sides.names]
    models = [row.optional(f"model_{side}") for side in (0, 1)]
    for pair in (list(sides.names), contents, models):
        if pair[0] != pair[1] and value in pair:
            return 1.0 - pair.index(value)
    if isinstance(value, list):
        return _of_list(value)
    if isinstance(value, bool):
        return float(value) if sides.by_preference else None
    if isinstance(value, int | float | Decimal):
        return _of_number(name, float(value), sides)
    if not isinstance(value, str):
        return None
    if re.fullmatch(r"\s*-?\d+([.,]\d+)?\s*", value):
        return _of_number(name, float(value.replace(",", ".")), sides)
    if sides.by_preference and value.strip().lower() in TRUTH:
        return TRUTH[value.strip().lower()]
    return _of_words(value, sides)


def _of_list(value: list[Any]) -> float | None:
    """Return the share in a list of two, 1 for the preferred one and 0 for the other."""
    return float(value[0]) if sorted(map(str, value)) in (["0", "1"], ["0.0", "1.0"]) else None


def _of_number(name: str, number: float, sides: Sides) -> float | None:
    if sides.by_preference:
        return number if 0.0 <= number <= 1.0 else None
    if name in AMBIGUOUS or sides.numbers is None or number not in sides.numbers:
        return None
    return 1.0 - sides.numbers.index(int(number))


def _of_words(text: str, sides: Sides) -> float | None:
    """Return the share of the first candidate that a phrase means: "A", "Image A is better", "model_b", "tie (bothbad)"."""
    words = set(re.findall(r"[^\W_]+", text.lower().replace("image", "image ").replace("model", "model ")))
    numbers = {} if sides.numbers is None else {str(number): 1.0 - place for place, number in enumerate(sides.numbers)}
    table = {**dict.fromkeys(FIRST, 1.0), **dict.fromkeys(SECOND, 0.0), **dict.fromkeys(TIE, 0.5), **numbers}
    if text.strip().lower() in ("no preference", "no difference", "cannot decide", "can't tell", "not sure"):
        return 0.5
    verdicts = {table[word] for word in words - AROUND if word in table}
    return verdicts.pop() if len(verdicts) == 1 and words - AROUND <= table.keys() and not words & {"not", "worse", "worst"} else None


def _rename(sides: Sides) -> str:
    return f"df = df.rename(columns={{'{sides.names[0]}': 'image_0', '{sides.names[1]}': 'image_1'}})"


def _not_understood(row: Row, name: str, sides: Sides) -> RecordError:
    first, second = sides.names
    value = shown(row.value[name])
    if isinstance(row.value[name], int | float | Decimal) or re.fullmatch(r"\s*[\d.,-]+\s*", str(row.value[name])):
        cure = (
            f"a number there may be a place or a share; write which: df['label_0'] = (df['{name}'] == 0) where it is the place of the "
            f"better one, from 0, or df['label_0'] = df['{name}'] where it is the share of votes for `{first}`"
        )
    else:
        cure = (
            f"expected A, B, left, right, `{first}`, `{second}` or tie, or a column label_0: "
            f"df['label_0'] = df['{name}'].map({{'WORD FOR {first}': 1, 'WORD FOR {second}': 0}})"
        )
    return RecordError(f"{row.where}: column `{name}` is {value}; {cure}")


def _no_preference(row: Row, sides: Sides) -> RecordError:
    there = ", ".join(list(map(str, row.value))[:20])
    empty = [name for name in ("label_0", "label_1", *BEST, *VOTES) if name in row.value]
    gap = f"`{empty[0]}` is empty" if empty else f"no column says which of `{sides.names[0]}` and `{sides.names[1]}` is the better one"
    return RecordError(
        f"{row.where}: {gap}; expected `label_0`, the share of votes for `{sides.names[0]}` in [0, 1], or `winner`, of {there}: for "
        f"example df['label_0'] = (df['COLUMN'] == 'A').astype(float)"
    )
