"""Other votes of the same person, written in front of a prompt: FSPO's context (2502.19312), from which a model reads whom it answers."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from diffalign.core.errors import TableError, listed
from diffalign.data.records import Record
from diffalign.data.table import Table
from diffalign.data.transforms import transformed
from diffalign.data.transforms.base import Transform
from diffalign.data.transforms.prompts import SHOT
from diffalign.data.view import without_content

logger = logging.getLogger(__name__)
LEAD, TASK = "What this person prefers:", "Answer what follows as this person would prefer."


@dataclass(frozen=True, slots=True)
class Vote:
    """A labelled pair of a person: which record it is, its prompt, and where its answers lie in the table."""

    key: tuple[str, str]  # source and id of the record
    prompt: str
    row: int
    preferred: int
    dispreferred: int


def written(votes: Iterable[tuple[str, str, str]], template: str = SHOT) -> str:
    """Return votes (prompt, preferred, dispreferred) as the text that stands in front of a prompt, in training as in use.

    >>> print(written([("Name a tree.", "Oak", "Rose")]))
    What this person prefers:
    <BLANKLINE>
    Prompt: Name a tree.
    Preferred: Oak
    Not preferred: Rose
    <BLANKLINE>
    Answer what follows as this person would prefer.
    """
    shots = [template.format(prompt=prompt, preferred=one.strip(), dispreferred=other.strip()) for prompt, one, other in votes]
    return "\n\n".join([LEAD, *shots, TASK])


def contexts(
    table: Table, before: Sequence[Transform], limit: int | None, *, shots: int, seed: int, template: str
) -> Mapping[tuple[str, str], str]:
    """Return the context of every record that the transforms `before` leave and whose user has voted enough, by its source and id.

    The `shots` votes are drawn by seed and record among the user's votes under other prompts. Users with too few are named in the log.
    Raises TableError for a table of images, and where no user has enough.
    """
    if table.manifest["kind"] != "text":
        raise TableError(
            f"{table.path}: `fewshot_context` writes answers into prompts, and these are {table.manifest['kind']}s; models of images learn "
            "from the votes of a person by method ppd"
        )
    people = _votes(table, before, limit)
    made, few = dict[tuple[str, str], str](), list[str]()
    answers = functools.lru_cache(maxsize=4096)(lambda row: tuple(candidate.text or "" for candidate in table[row].candidates))
    for user, votes in people.items():
        drawn = {vote.key: _drawn(vote, votes, Counter(other.prompt for other in votes), shots, seed) for vote in votes}
        whole = {key: own for key, own in drawn.items() if len(own) == shots}
        few += [] if whole else [user]
        for key, own in whole.items():
            made[key] = written([(v.prompt, answers(v.row)[v.preferred], answers(v.row)[v.dispreferred]) for v in own], template)
    if not made:
        raise TableError(
            f"{table.path}: none of {len(people)} users has {shots} labelled pairs under other prompts, which `fewshot_context` writes in "
            "front of each prompt; records name their user in the column user_id"
        )
    if few:
        logger.info("%d of %d users have too few votes for %d in front of a prompt: %s", len(few), len(people), shots, listed(few))
    return made


def _votes(table: Table, before: Sequence[Transform], limit: int | None) -> Mapping[str, list[Vote]]:
    """Return the labelled pairs of every person, in the order of the table."""
    people: dict[str, list[Vote]] = defaultdict(list)
    for row, light in enumerate(islice(without_content(table), limit)):
        for record in transformed(light, before)[0]:
            if record.user and len(record.candidates) == 2 and record.prob not in (None, 0.5):
                people[record.user].append(_vote(record, row, record.prob or 0.0))
    return people


def _vote(record: Record, row: int, prob: float) -> Vote:
    first, second = (int(candidate.image or b"") for candidate in record.candidates)  # a record without content: its place in the row
    return Vote((record.source, record.id), record.prompt, row, *((first, second) if prob > 0.5 else (second, first)))


def _drawn(vote: Vote, votes: Sequence[Vote], prompts: Mapping[str, int], shots: int, seed: int) -> list[Vote]:
    """Return up to `shots` of a person's votes under other prompts, in the order in which they were drawn."""
    digest = hashlib.sha256(repr(vote.key).encode()).digest()
    size = min(len(votes), shots + prompts[vote.prompt])  # so many that enough are left without those of this prompt
    places = np.random.default_rng([seed, *digest]).choice(len(votes), size=size, replace=False).tolist()
    return [votes[place] for place in places if votes[place].prompt != vote.prompt][:shots]
