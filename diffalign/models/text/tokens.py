"""The token ids of a view's records, made once: those of many records by all processes of a launch, each its share, and kept on disk.

They are kept as the template writes them, so one cache serves any `max_length` and every objective, and are memory-mapped: what a process
holds is the length of each text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import transformers

from diffalign.core.files import atomic_file
from diffalign.core.processes import shares
from diffalign.core.progress import chunks
from diffalign.data.cache import filling, fingerprint, open_folder
from diffalign.data.view import View
from diffalign.models.text.rationale import QUESTION, explained
from diffalign.models.text.template import Encoded, Template

PART = 4096  # records of a file; fewer in all take seconds, and are made by each process for itself
AT_ONCE = 512  # records tokenised at once
PROMPT = -1  # stands in `kinds` for a prompt; a completion has the place of the prompt that it answers
# Token ids (N,) end to end; of each text (rows, 2) its length and kind; of each record (R, 2) its texts, and tokens that were lost. int32.
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


class Tokens(Sequence[Encoded]):
    """Encoded records. `lengths` and `kinds` (rows,) are of their prompts and completions in turn, `first` (R + 1,) where each begins."""

    def __init__(self, parts: Sequence[Arrays], folder: Path | None = None) -> None:
        self._parts, self._folder = (parts, folder) if folder is None else ((), folder)
        self._ids = [ids for ids, _, _ in parts]
        facts, records = (np.concatenate([part[i] for part in parts]).astype(np.int64) for i in (1, 2))
        self.lengths, self.kinds, self.lost = facts[:, 0], facts[:, 1].astype(np.int32), records[:, 1]
        self.first = np.concatenate([[0], np.cumsum(records[:, 0])])
        self.completions = np.add.reduceat(self.kinds != PROMPT, self.first[:-1]) if len(self.kinds) else np.empty(0, np.int64)
        self._count = len(records)
        sizes = [len(own) for _, own, _ in parts]
        self._rows = np.concatenate([[0], np.cumsum(sizes)])  # of the parts
        starts = [np.cumsum(own[:, 0], dtype=np.int64) - own[:, 0] for _, own, _ in parts]
        self._starts = np.concatenate(starts)  # of each row, in the ids of its part

    def __reduce__(self) -> tuple[Any, ...]:
        # A memory map would be copied for a worker process.
        return (Tokens, (self._parts,)) if self._folder is None else (_of_folder, (self._folder, self._count))

    def __len__(self) -> int:
        return len(self.first) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        record = range(len(self))[index]
        rows = range(int(self.first[record]), int(self.first[record + 1]))
        ids = self._ids[int(np.searchsorted(self._rows, rows[0], "right")) - 1]
        texts = [np.asarray(ids[self._starts[row] : self._starts[row] + self.lengths[row]]) for row in rows]
        kinds = self.kinds[rows[0] : rows[-1] + 1].tolist()
        prompts = tuple(text for text, kind in zip(texts, kinds, strict=True) if kind == PROMPT)
        completions = tuple(text for text, kind in zip(texts, kinds, strict=True) if kind != PROMPT)
        return Encoded(prompts, tuple(kind for kind in kinds if kind != PROMPT), completions, int(self.lost[record]))

    @property
    def longest_prompts(self) -> np.ndarray:
        """The tokens (R,) of every record's longest prompt."""
        return np.maximum.reduceat(np.where(self.kinds == PROMPT, self.lengths, 0), self.first[:-1]) if len(self) else np.empty(0, np.int64)


def _of_folder(folder: Path, count: int) -> Tokens:
    return Tokens([_opened(folder, start) for start in range(0, count, PART)], folder)


def tokens(view: View, template: Template, root: Path | None = None, *, rationales: bool = False) -> Tokens:
    """Return the token ids of a view's records; of many, in files under `root`, which are read where they are there. Errors as `encode`.

    With `rationales` each record has one candidate more, see `rationale.explained`.
    """
    starts = range(0, len(view), PART)
    if root is None or len(starts) < 2:
        parts = [_arrays(_encoded(view, template, range(len(view)), rationales))]
        return Tokens(parts)
    facts = {"table": view.table.fingerprint, "view": _digest(view), "template": _fingerprint(template)}
    folder = open_folder(root, "tokens", facts | ({"question": QUESTION} if rationales else {}))

    def missing() -> list[int]:
        return [start for start in starts if not _files(folder, start)[-1].is_file()]

    with filling(folder):
        for own in shares(missing):
            for start in own:
                made = _arrays(_encoded(view, template, range(start, min(start + PART, len(view))), rationales))
                for file, array in zip(_files(folder, start), made, strict=True):
                    with atomic_file(file) as temporary, temporary.open("wb") as out:
                        np.save(out, array)
    return _of_folder(folder, len(view))


def _files(folder: Path, start: int) -> tuple[Path, Path, Path]:
    """Return the files of a part, the one last that is written last."""
    return folder / f"{start:09d}.ids.npy", folder / f"{start:09d}.texts.npy", folder / f"{start:09d}.records.npy"


def _opened(folder: Path, start: int) -> Arrays:
    ids, facts, records = _files(folder, start)
    return np.load(ids, mmap_mode="r"), np.load(facts), np.load(records)


def _encoded(view: View, template: Template, positions: range, rationales: bool) -> Iterator[Encoded]:
    for part in chunks(positions, AT_ONCE, "tokenise"):
        yield from template.encode([explained(view[i]) if rationales else view[i] for i in part])


def _arrays(records: Iterator[Encoded]) -> Arrays:
    ids: list[np.ndarray] = []
    facts: list[tuple[int, int]] = []
    own: list[tuple[int, int]] = []
    for record in records:
        texts = (*record.prompts, *record.completions)
        ids += texts
        facts += zip(map(len, texts), (*[PROMPT] * len(record.prompts), *record.answers), strict=True)
        own.append((len(texts), record.lost))
    flat = np.concatenate(ids).astype(np.int32) if ids else np.empty(0, np.int32)
    return flat, np.array(facts, np.int32).reshape(-1, 2), np.array(own, np.int32).reshape(-1, 2)


def _digest(view: View) -> str:
    """Return a hash of which records a view has, in which order their candidates lie, and what transforms made of prompts and messages."""
    block, digest = view.entries.block, hashlib.sha256()
    for array in (block.rows, block.counts, block.order):
        digest.update(np.ascontiguousarray(array).tobytes())
    changed = {name: values for name, values in block.texts.items() if name != "id"}
    if changed:
        digest.update(pa.record_batch(list(changed.values()), names=list(changed)).serialize())
    return digest.hexdigest()


def _fingerprint(template: Template) -> str:
    """Return a hash of everything that token ids depend on besides the texts."""
    own = template.tokenizer
    fast = getattr(own, "backend_tokenizer", None)
    vocabulary = fast.to_str() if fast is not None else repr((sorted(own.get_vocab().items()), own.init_kwargs))
    facts = {"class": type(own).__name__, "library": transformers.__version__, "special": str(own.special_tokens_map), "version": 1}
    return fingerprint(facts | {"vocabulary": vocabulary, "chat_template": str(own.chat_template)})
