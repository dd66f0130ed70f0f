"""One candidate a row, with a label or a rating: TRL's unpaired preferences, and sets of rated images such as AGIQA.

Columns: `prompt` (or `caption`, `text`); `image` (or `image_path`, `file_name`), or `completion` (or `response`); and `label`, true where
the candidate is liked, or `rating` (or `mos`, `score`, ...), higher is better. The rows of one prompt become one ranking, wherever they
stand, in which a label is the score `liked`, 1 or 0; a candidate that is alone with its prompt stays alone, with its label as `prob`, and
trains no method that compares.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator

from diffalign.core.errors import RecordError
from diffalign.data.readers.base import CONDITIONING, MISSING, Reader, Row
from diffalign.data.readers.chat import answer, chat_record, messages
from diffalign.data.readers.columns import PROMPT
from diffalign.data.readers.row_images import shown
from diffalign.data.readers.rows import Columns
from diffalign.data.readers.sources import open_rows
from diffalign.data.records import Candidate, Record

MEMBERS = "rows of one prompt"  # a column that only joined rows have
IMAGES = ("image", "image_path", "file_name", "img", "path", "name")
TEXTS = ("completion", "response", "answer", "output")
RATINGS = ("rating", "stars", "mos", "score", "overall_rating", "mos_quality", "mos_align", "quality", "alignment")
LABEL, RANK = ("label", "liked", "like", "thumbs"), "rank"  # of ranks 1 is the best
LIKED = "liked"  # score of labels within a ranking
WORDS = {  # of a label; numbers below 0 are none, for beside them 0 may be neither
    True: "true t 1 1.0 yes y good liked like chosen desirable up thumbs_up thumbsup positive pos \U0001f44d",
    False: "false f 0 0.0 no n bad disliked dislike rejected undesirable down thumbs_down thumbsdown negative neg \U0001f44e",
}
LABELS = {word: label for label, words in WORDS.items() for word in words.split()}


def rows(source: str, split: str | None) -> Iterator[Row]:
    """Yield one row for each prompt of a table of this layout, which is read twice; rows of any other table as they are."""
    opened = open_rows(source, split)
    first = next(opened, None)
    if first is None or _columns(first) is None:
        yield from itertools.chain(() if first is None else (first,), opened)
        return
    left = Counter(_key(row) for row in open_rows(source, split))
    groups: dict[str, list[Row]] = {}
    for row in itertools.chain((first,), opened):
        key = _key(row)
        groups.setdefault(key, []).append(row)
        left[key] -= 1
        if not left[key]:
            yield _join(groups.pop(key))


def _columns(row: Row) -> tuple[str, str] | None:
    """Return the columns of a row's candidate and of its label or rating, or None."""
    candidate = next((name for name in (*IMAGES, *TEXTS) if name in row.value), None)
    rated = rating_column(row)
    return (candidate, rated) if candidate and rated and any(name in row.value for name in PROMPT) else None


def rating_column(row: Row) -> str | None:
    """Return the column that says how good a row's candidate is, or None."""
    return next((name for name in (*RATINGS, RANK, *LABEL) if name in row.value and not isinstance(row.value[name], list)), None)


def _key(row: Row) -> str:
    """Return what rows of one prompt, and of one conditioning image, have in common; a row that cannot be read is alone."""
    prompt, conditioning = (next((row.value[name] for name in names if name in row.value), None) for names in (PROMPT, CONDITIONING))
    if row.broken or prompt in MISSING:
        return f"row {row.id}"
    shared = "" if conditioning in MISSING else hashlib.sha256(repr(conditioning).encode()).hexdigest()
    return f"prompt {prompt!r}{shared}"


def _join(members: list[Row]) -> Row:
    first = members[0]
    where = first.where if len(members) == 1 else f"{first.where} and {len(members) - 1} more of its prompt"
    return Row(Columns({**first.value, MEMBERS: members}), where, first.id, first.folder, first.broken, first.line)


def parse(row: Row) -> Record:
    """Return the ranking of a prompt's candidates, the best with rank 1; a lone candidate with a label has it as its `prob`."""
    if MEMBERS not in row.value:
        columns = ", ".join((*LABEL, *RATINGS))
        raise RecordError(row.broken or f"{row.where}: no column of labels or ratings; expected one of {columns}, or two candidates a row")
    members = row.get(MEMBERS, list)
    rated = [_rated_by(member) for member in members]
    best = sorted((value for _, value in rated), reverse=True)
    lone_label = len(members) == 1 and LIKED in rated[0][0]
    candidates = [
        _candidate(member, {} if lone_label else scores, 1.0 + best.index(value))
        for member, (scores, value) in zip(members, rated, strict=True)
    ]
    prob = rated[0][1] if lone_label else None
    name, *aliases = PROMPT
    if isinstance(row.get(name, (str, list), aliases=tuple(aliases)), list):
        return chat_record(row, messages(row, name), candidates, prob=prob)
    return Record(row.id, row.text(name, aliases=tuple(aliases)), tuple(candidates), prob, _user(members), row.where)


def _user(members: list[Row]) -> str | None:
    """Return who judged all candidates of a prompt; None where several people did, for a comparison of theirs is no one's own."""
    users = {member.user() for member in members}
    return users.pop() if len(users) == 1 else None


def _rated_by(row: Row) -> tuple[dict[str, float], float]:
    """Return a row's ratings, by name, and the number by which it is ranked. Raises RecordError for a label that is none."""
    ratings = {name: row.number(name) for name in RATINGS if row.value.get(name) not in MISSING}
    if ratings:
        if not all(map(math.isfinite, ratings.values())):
            raise RecordError(f"{row.where}: a rating is not finite; found {ratings}")
        return ratings, next(iter(ratings.values()))
    if empty := next((name for name in RATINGS if name in row.value), None):
        raise RecordError(f"{row.where}: column `{empty}` is empty; expected a number")
    if RANK in row.value:
        return {}, -row.number(RANK)
    name, *aliases = LABEL
    value = row.get(name, aliases=tuple(aliases))
    label = LABELS.get(re.sub(r"[ -]+", "_", str(value).strip().lower()))
    if label is None:
        column = next(column for column in LABEL if column in row.value)
        raise RecordError(f"{row.where}: column `{column}` is {shown(value)}; expected true (liked) or false")
    return {LIKED: float(label)}, float(label)


def _candidate(row: Row, scores: dict[str, float], rank: float) -> Candidate:
    model = row.optional("model", aliases=("t2i_model",))
    columns = _columns(row)
    if columns is None:
        raise RecordError(row.broken or f"{row.where}: no candidate; expected one of the columns {', '.join((*IMAGES, *TEXTS))}")
    name = columns[0]
    if name in IMAGES:
        own = row.conditioning_image()
        return Candidate(image=row.image(name), scores=scores, rank=rank, model=model, conditioning_image=own)
    text = answer(row, name, messages(row, name)) if isinstance(row.get(name, (str, list)), list) else row.text(name)
    return Candidate(text=text, scores=scores, rank=rank, model=model)


UNPAIRED = Reader(
    rows,
    parse,
    ("|".join(PROMPT), "|".join((*IMAGES, *TEXTS)), "|".join((*RATINGS, RANK, *LABEL))),
    "one candidate a row with a label a rating or a rank (prompt, completion, label; prompt, image, rating)",
    lambda row: MEMBERS in row.value,
)
