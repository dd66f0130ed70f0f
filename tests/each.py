"""A contract over a table is one test: it runs for every entry, and names those that failed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any


def each(entries: Iterable[Any]) -> Callable[[Callable[..., None]], Callable[[], None]]:
    """Let a test, whose first argument is an entry, run for all of `entries`; it fails with the names and reasons of those that failed.

    The test of one entry stays within reach as `of_one`.
    """

    names = list(entries)
    assert names

    def decorate(test: Callable[..., None]) -> Callable[[], None]:
        def over_all() -> None:
            failures = {}
            for entry in names:
                try:
                    test(entry)
                except Exception as error:  # every kind of failure is gathered
                    failures[entry] = error
            if failures:
                reasons = "\n".join(f"{entry}: {type(error).__name__}: {error}" for entry, error in failures.items())
                raise AssertionError(f"{len(failures)} of {len(names)} failed\n{reasons}") from next(iter(failures.values()))

        over_all.__name__, over_all.__doc__, over_all.__module__ = test.__name__, test.__doc__, test.__module__
        over_all.of_one = test
        return over_all

    return decorate
