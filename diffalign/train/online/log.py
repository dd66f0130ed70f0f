"""What a run has drawn: a preference table for each turn with the latents beside it, and one table of all turns at the end."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from diffalign.core import tensor_files
from diffalign.core.errors import CheckpointError
from diffalign.core.files import atomic_file
from diffalign.data.records import Record
from diffalign.data.table import Table, is_table, read_table, write_table
from diffalign.train.results import PARTS

DATA = "data"
TURN = "turn"  # in the meta of every record


class Log:
    """The turns in the folder of a run. A turn is there once its table is, which is written last and whole or not at all."""

    def __init__(self, output_dir: Path) -> None:
        self.data, self.parts = output_dir / DATA, output_dir / PARTS

    def turns(self) -> list[int]:
        """Return the numbers of the turns that have a table of their own."""
        named = (re.fullmatch(r"turn-(\d+)", path.name) for path in self.parts.glob("turn-*") if is_table(path))
        return sorted(int(match[1]) for match in named if match)

    def table(self, turn: int) -> Path:
        """Return the folder of a turn's table."""
        return self.parts / f"turn-{turn:06d}"

    def latents(self, turn: int) -> Path:
        """Return the file of a turn's latents."""
        return self.parts / f"turn-{turn:06d}.safetensors"

    def write(self, turn: int, records: Sequence[Record], tensors: Mapping[str, Tensor], **manifest: Any) -> None:
        """Write a turn: its records, and the latents and kept steps (G, K, ...) of their candidates."""
        with atomic_file(self.latents(turn)) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
        write_table(self.table(turn), records, overwrite=True, **manifest)

    def read(self, turn: int) -> tuple[Table, dict[str, Tensor]]:
        """Return a turn's table, and its latents and kept steps.

        Raises CheckpointError where a checkpoint lies in the turn and its files are gone.
        """
        if not is_table(self.table(turn)) or not self.latents(turn).is_file():
            raise CheckpointError(
                f"{self.table(turn)}: the checkpoint lies within this turn, and what was drawn in it is not there any more; go on from "
                "a checkpoint at the end of a turn, or train anew"
            )
        return read_table(self.table(turn)), tensor_files.read(self.latents(turn))[0]

    def discard(self, first: int) -> None:
        """Remove the turns from number `first` on, and what a killed process had begun to write."""
        for turn in self.turns():
            if turn >= first:
                shutil.rmtree(self.table(turn))
        for file in [*self.parts.glob("turn-*.safetensors"), *self.parts.glob(".turn-*")]:
            if not is_table(file.with_suffix("")):
                shutil.rmtree(file) if file.is_dir() else file.unlink()

    def forget(self, needed: Iterable[int]) -> None:
        """Remove the latents of all turns but the `needed` ones."""
        kept = {self.latents(turn) for turn in needed}
        for file in self.parts.glob("turn-*.safetensors"):
            if file not in kept:
                file.unlink()

    def join(self, last: int, needed: Iterable[int], **manifest: Any) -> Table:
        """Write the table of all turns up to `last`, remove their own ones but for the `needed` ones, and return it."""
        turns, needed = [turn for turn in self.turns() if turn <= last], set(needed)
        self.forget(needed)
        if turns:
            facts = {**_facts(read_table(self.table(turns[0])).manifest), **manifest}
            write_table(self.data, self._records(turns, last), overwrite=True, **facts)
        for turn in turns:
            if turn not in needed:
                shutil.rmtree(self.table(turn))
        if not any(self.parts.glob("*")):
            shutil.rmtree(self.parts, ignore_errors=True)
        return read_table(self.data)

    def _records(self, turns: Sequence[int], last: int) -> Iterator[Record]:
        """Yield the records of all turns: those that lie in the table of an earlier end, and those that have tables of their own."""
        if is_table(self.data):
            earlier = (record for record in read_table(self.data) if int(record.meta[TURN]) not in turns)
            yield from (record for record in earlier if int(record.meta[TURN]) <= last)
        for turn in turns:
            yield from read_table(self.table(turn))


def _facts(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a turn's manifest says that holds for all turns."""
    return {name: manifest[name] for name in ("scorers", "generated")}
