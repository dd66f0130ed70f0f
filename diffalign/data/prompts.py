"""Prompts as commands take them: the name of a known set, a file, or a prompt itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from diffalign.core.errors import ConfigError, RecordError, TableError, did_you_mean
from diffalign.data.readers.base import read
from diffalign.data.readers.prompts import LISTS, of_column
from diffalign.data.readers.sources import FORMATS
from diffalign.data.table import is_table, read_table

T = TypeVar("T")
BUNDLED = Path(__file__).resolve().parent / "prompt_sets"
SUFFIXES = (*LISTS, *FORMATS)
NEAR = 0.9  # difflib's ratio from which a single word counts as a misspelt name of a set
HINT = " If the word is a prompt, write it into a .txt file"
STYLES = ("anime", "concept-art", "paintings", "photo")


@dataclass(frozen=True, slots=True)
class PromptSet:
    """A published set of prompts, which can be asked for by its name."""

    about: str
    licence: str
    source: str
    files: Callable[[], list[Path]]  # returns the files that hold the prompts, downloaded first if they are not bundled


def _bundled(folder: str, pattern: str) -> list[Path]:
    return sorted((BUNDLED / folder).glob(pattern))


def _downloaded(repository: str, patterns: Sequence[str]) -> list[Path]:
    """Return the files of a hub dataset that match each of `patterns`, in that order. Raises ConfigError if a pattern has no match."""
    from huggingface_hub import snapshot_download  # takes a second to import, and only sets that are not bundled need it

    try:
        folder = Path(snapshot_download(repository, repo_type="dataset", allow_patterns=list(patterns)))
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{repository}: the hub gives no prompts ({reason}); name a file instead") from error
    matches = [sorted(folder.glob(pattern)) for pattern in patterns]
    for pattern, files in zip(patterns, matches, strict=True):
        if not files:
            raise ConfigError(f"{repository}: the dataset on the hub, or its copy in the cache, has no {pattern}; name a file instead")
    return [file for files in matches for file in files]


PROMPT_SETS = {
    "partiprompts": PromptSet(
        "PartiPrompts: 1632 prompts in twelve categories, from single words to paragraphs",
        "Apache-2.0",
        "github.com/google-research/parti (2206.10789), bundled",
        partial(_bundled, "partiprompts", "*.tsv"),
    ),
    "geneval": PromptSet(
        "GenEval: 553 prompts of objects, counts, colours and places, without GenEval's score, which needs an object detector. "
        "`diffalign/data/world/checks.py` has such a score for the embedded world",
        "MIT",
        "github.com/djghosh13/geneval (2310.11513), bundled",
        partial(_bundled, "geneval", "*.jsonl"),
    ),
    "t2i-compbench": PromptSet(
        "T2I-CompBench++: the training prompts of eight kinds (5559 distinct); the benchmark evaluates on other prompts",
        "MIT",
        "github.com/Karine-Huang/T2I-CompBench (2307.06350), bundled",
        partial(_bundled, "t2i-compbench", "*.txt"),
    ),
    "hpsv2": PromptSet(
        "HPSv2's benchmark: 800 prompts in each of four styles (anime, concept-art, paintings, photo)",
        "Apache-2.0",
        "huggingface.co/datasets/zhwang/HPDv2 (2306.09341), downloaded",
        partial(_downloaded, "zhwang/HPDv2", [f"benchmark/{style}.json" for style in STYLES]),
    ),
    "pickapic": PromptSet(
        "Pick-a-Pic v2: the 500 captions of `test_unique`, as people typed them; some are not safe for work",
        "none stated",
        "huggingface.co/datasets/yuvalkirstain/pickapic_v2_no_images (2305.01569), downloaded",
        partial(_downloaded, "yuvalkirstain/pickapic_v2_no_images", ["data/test_unique-*.parquet"]),
    ),
}


def prompts_of(values: Sequence[str], *, column: str | None = None) -> list[str]:
    """Return the prompts of `values`, in their order: each value is the name of one of `PROMPT_SETS`, a file, a folder, or a prompt.

    A file is .txt with one prompt per line, a JSON list of texts, or any table with a column prompt or caption, or another `column`; a
    folder holds such files. Prompts of a set are distinct; those of files and of `values` may repeat. Raises ConfigError for a missing
    file and for what looks like the name of a file or set but is not, RecordError that names file and row for a value that is not a
    prompt, TableError for a file without prompts.
    """
    return [prompt for value in values for prompt in _expanded(value, column)]


def prompts_to_draw(
    values: Sequence[str],
    dataset_name: str | None = None,
    split: str | None = None,
    *,
    column: str | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> list[str]:
    """Return the distinct prompts of `values`, or of the table or dataset `dataset_name`; a random `limit` of them if that is not None.

    Raises ConfigError if there are both values and a dataset.
    """
    if values and dataset_name is not None:
        raise ConfigError("`prompts` and `dataset_name` both name prompts; leave one of them out")
    prompts: Iterable[str] = prompts_of(values, column=column)
    if dataset_name is not None and is_table(dataset_name):
        prompts = read_table(dataset_name).column("prompt")
    elif dataset_name is not None:
        prompts = (record.prompt for record in read(of_column(column), dataset_name, split=split))
    return subset(list(dict.fromkeys(prompts)), limit, seed)


def edits_to_draw(
    dataset_name: str | None, limit: int | None = None, seed: int = 0, key: str = "dataset_name"
) -> tuple[list[str], list[bytes]]:
    """Return the prompts of a table, and the input picture of each; a random `limit` of the records if that is not None.

    Raises ConfigError where `key` names no table, and TableError that names the record where one has no input picture.
    """
    if dataset_name is None or not is_table(dataset_name):
        raise ConfigError(
            f"`{key}` is {dataset_name}; an edit model draws from input pictures: expected a table that has them, as "
            "`diffalign data import` writes it from the column `conditioning_image`"
        )
    table = read_table(dataset_name)
    records = [table[row] for row in subset(range(len(table)), limit, seed)]
    if lacking := next((record.id for record in records if record.conditioning_image is None), None):
        raise TableError(f"{table.name}: record {lacking} has no input picture; give it in the column `conditioning_image`")
    return [record.prompt for record in records], [record.conditioning_image or b"" for record in records]


def subset(prompts: Sequence[T], limit: int | None, seed: int = 0, turn: int = 0) -> list[T]:
    """Return a uniformly random `limit` of the prompts, in their order; all of them if `limit` is None or larger than their number.

    They are the first `limit` of a permutation by numpy's default_rng(seed), so a larger subset contains a smaller one. Turn n takes the
    n-th `limit` of the permutation, and begins again after its end. Raises ConfigError if `limit` is below one.
    """
    if limit is None:
        return list(prompts)
    if limit < 1:
        raise ConfigError(f"`max_prompts` is {limit}; expected at least one prompt")
    count = min(limit, len(prompts))
    chosen = np.roll(np.random.default_rng(seed).permutation(len(prompts)), -turn * count)[:count]
    return [prompts[int(index)] for index in sorted(chosen)]


def _expanded(value: str, column: str | None) -> list[str]:
    if value in PROMPT_SETS:
        return list(dict.fromkeys(prompt for file in PROMPT_SETS[value].files() for prompt in _read(file)))
    if _is_folder(value):
        return _of_folder(Path(value).expanduser(), column)
    if value.lower().endswith(SUFFIXES) or re.fullmatch(r"\S+\.[A-Za-z]\w{1,7}", value):
        return _read(_file(value), column)
    if not re.search(r"\s", value) and get_close_matches(value.lower(), PROMPT_SETS, cutoff=NEAR):
        raise ConfigError(f"`prompts`: there is no set `{value}`.{did_you_mean(value.lower(), PROMPT_SETS)}{HINT}")
    return [value]


def _is_folder(value: str) -> bool:
    try:
        return Path(value).expanduser().is_dir()
    except (OSError, ValueError, RuntimeError):  # a prompt that can be no path
        return False


def _of_folder(folder: Path, column: str | None) -> list[str]:
    """Return the prompts of the files in a folder, in the order of their names. Raises ConfigError where it holds no file of prompts."""
    files = sorted(file for file in folder.rglob("*") if file.name.lower().endswith(SUFFIXES) and file.is_file())
    if not files:
        raise ConfigError(f"`prompts`: the folder {folder} holds no file of prompts; expected {', '.join(SUFFIXES)}.{HINT}")
    return [prompt for file in files for prompt in _read(file, column)]


def _file(value: str) -> Path:
    path = Path(value).expanduser()
    if not path.is_file():
        near = did_you_mean(Path(value).stem.lower(), PROMPT_SETS)
        raise ConfigError(f"`prompts`: there is no file {value}, and no set of that name.{near}{HINT}")
    if not value.lower().endswith(SUFFIXES):
        raise ConfigError(f"`prompts`: {value} is not a kind of file that holds prompts; expected one of {', '.join(SUFFIXES)}")
    return path


def _read(path: Path, column: str | None = None) -> list[str]:
    prompts = []
    for record in read(of_column(column), str(path)):
        if not record.prompt.strip():
            raise RecordError(f"{record.source}: the prompt is empty")
        prompts.append(record.prompt.strip())
    if not prompts:
        raise TableError(f"{path}: no prompt in the file; expected one per line")
    return prompts
