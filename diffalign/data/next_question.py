"""What a voter can be asked next: pairs that the voter has not compared, and pictures that the voter has not ranked."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

from diffalign.data import store_schema as sql
from diffalign.data.questions import RANKED, OpenPair, Order, ShownPicture

CANDIDATES = 64  # open pairs among which a chooser chooses
OF_A_PROMPT = 4  # of them, so that they are of several prompts

Rows = Callable[..., list[tuple]]  # of a SELECT and its values
MakePicture = Callable[[int, str, str, int], ShownPicture]  # of its number, file, model and seed


def open_pairs(rows: Rows, voter: int, order: Order, count: int, picture: MakePicture) -> list[OpenPair]:
    """Return up to `count` pairs that a voter was not shown, at most four of a prompt, of each prompt those that were shown least.

    `order` is that of the prompts: "balanced" begins with those that this voter saw least, and among them with those that have a pair
    nobody has seen; "random" has none.
    """
    ((shown, all_pairs),) = rows(sql.PAIRS_SHOWN, voter)
    if shown == all_pairs:
        return []
    pairs: list[OpenPair] = []
    of_a_prompt = min(count, OF_A_PROMPT)
    for number, text in rows(sql.PROMPTS_IN_ORDER[order], voter):
        for row in rows(sql.OPEN_PAIRS, voter, number, of_a_prompt):
            pairs.append(OpenPair(row[0], text, picture(*row[1:5]), picture(*row[5:9])))
        if len(pairs) >= count:
            break
    return pairs[:count]


def open_ranking(rows: Rows, voter: int) -> tuple[str, list[int]] | None:
    """Return a prompt with the numbers of four different pictures of it that a voter has not ranked; None if there are no four.

    The prompts that this voter ranked least come first.
    """
    for number, text in rows(sql.PROMPTS_TO_RANK, voter):
        files: dict[str, int] = {}
        for picture, file in rows(sql.UNRANKED, voter, number):
            files.setdefault(file, picture)
        if len(files) >= RANKED:
            return text, list(islice(files.values(), RANKED))
    return None
