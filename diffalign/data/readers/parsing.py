"""Turns the pieces of a source into records: in this process, or in several that parse and check pictures at once."""

from __future__ import annotations

import collections
import itertools
import multiprocessing
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from diffalign.core.errors import RecordError
from diffalign.data.readers import READERS
from diffalign.data.readers.base import parse_rows
from diffalign.data.readers.pieces import Piece
from diffalign.data.records import Record

AHEAD = 2  # pieces a process that are parsed before they are needed


@dataclass(frozen=True, slots=True)
class Parsed:
    """The records of a piece, and the rows that could not be read, which are listed once the records have been gone through."""

    records: Iterable[Record]
    rejected: list[dict[str, str]]


def parsed(pieces: Iterable[Piece], reader: str, *, skip_bad: bool, processes: int = 1) -> Iterator[Parsed]:
    """Yield what each piece is parsed to, in order. Raises RecordError for the first bad row, unless `skip_bad` lists them instead."""
    if processes == 1:
        for piece in pieces:
            rejected: list[dict[str, str]] = []
            yield Parsed(parse_rows(READERS[reader], piece.rows(), rejected if skip_bad else None), rejected)
        return
    # Not forked: Arrow's threads, which hold locks, would not come along.
    context, ahead = multiprocessing.get_context("spawn"), collections.deque[Future[Parsed]]()
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_end_with_parent) as pool:
        try:
            own = iter(pieces)
            ahead.extend(pool.submit(_parse, piece, reader, skip_bad) for piece in itertools.islice(own, AHEAD * processes))
            while ahead:
                yield ahead.popleft().result()
                ahead.extend(pool.submit(_parse, piece, reader, skip_bad) for piece in itertools.islice(own, 1))
        except BrokenProcessPool as error:
            raise RecordError(f"a process that parses rows has died, perhaps for want of memory; lower `num_proc` ({error})") from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _end_with_parent() -> None:
    """End this process when the one that has started it does, which a pool leaves waiting for work where that one is killed."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _parse(piece: Piece, reader: str, skip_bad: bool) -> Parsed:
    rejected: list[dict[str, str]] = []
    return Parsed(list(parse_rows(READERS[reader], piece.rows(), rejected if skip_bad else None)), rejected)
