"""Progress of whatever takes more than a few seconds: a bar on a terminal, and a line every ten seconds anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any, TypeVar

from tqdm.auto import tqdm as bar_of_the_terminal
from tqdm.std import tqdm

T = TypeVar("T")
SECONDS = 10.0  # between two lines


class ProgressLines(tqdm):
    """tqdm for logs: whole lines instead of a bar that is drawn over itself, at the start, every ten seconds and at the end."""

    monitor_interval = 0  # tqdm's thread serves bars that stand still

    def display(self, msg: str | None = None, pos: int | None = None) -> None:  # noqa: ARG002  # tqdm's signature
        """Write the state as a line."""
        self.fp.write(f"{self}\n")
        self.fp.flush()

    def set_postfix(self, ordered_dict: Any = None, refresh: bool | None = True, **values: Any) -> None:  # noqa: ARG002  # tqdm's signature
        """Keep values for the next line, instead of writing one for them."""
        super().set_postfix(ordered_dict, refresh=False, **values)

    def clear(self, nolock: bool = False) -> None:
        """Do nothing: a line that is written stays."""

    def close(self) -> None:
        """Write the last line, unless it stands there already."""
        if not self.disable:
            self.disable = True
            if self.n != self.last_print_n:
                self.display()


def progress(
    items: Iterable[Any] | None = None,
    *,
    desc: str,
    unit: str = "",
    total: int | None = None,
    initial: int = 0,
    hidden: bool = False,
) -> tqdm[Any]:
    """Return `items`, which report how far they are as they are looped over; without items, a counter that `update` moves.

    Args:
        items: what is looped over.
        desc: what is being done, as a verb: draw pairs.
        unit: what is counted, in the plural; nothing if `desc` says it.
        total: how many there are; the length of `items` if they have one.
        initial: how many of them were done before.
        hidden: whether nothing is to be shown, as for what takes a moment.

    Example:
        >>> [n for n in progress([1, 2], desc="count", unit="numbers", hidden=True)]
        [1, 2]
    """
    options: dict[str, Any] = {"desc": desc, "unit": f" {unit}".rstrip(), "total": total, "initial": initial}
    if hidden:
        return tqdm(items, disable=True)
    if sys.stderr.isatty():
        return bar_of_the_terminal(items, **options)
    of = " of {total_fmt}" if total is not None or isinstance(items, Sized) else ""
    form = f"{{desc}}: {{n_fmt}}{of}{{unit}} in {{elapsed}}{', {remaining} left' if of else ''}{{postfix}}"
    return ProgressLines(items, **options, bar_format=form, mininterval=SECONDS, miniters=1)


def chunks(items: Sequence[T], size: int, desc: str) -> Iterator[Sequence[T]]:
    """Yield `items` in chunks of `size`, and report how many of them are done."""
    with progress(desc=desc, total=len(items), hidden=not items) as bar:
        for start in range(0, len(items), size):
            part = items[start : start + size]
            yield part
            bar.update(len(part))
