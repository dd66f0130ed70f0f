"""Prompts to draw, as commands take them: known sets by name, files, or the prompts themselves."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path

import numpy as np

from diffalign.core.errors import ConfigError, RecordError, TableError, did_you_mean
from diffalign.data.readers.base import FORMATS, read
from diffalign.data.readers.prompts import PROMPTS
from diffalign.data.table import is_table, read_table

BUNDLED = Path(__file__).resolve().parent / "prompt_sets"
SUFFIXES = (".txt", *FORMATS)
NEAR = 0.9  # difflib's ratio from which one word counts as a misspelt name of a set
CURE = " If the word is a prompt, write it into a .txt file"
STYLES = ("anime", "concept-art", "paintings", "photo")


@dataclass(frozen=True, slots=True)
class PromptSet:
    """A set of prompts that has a name; `files` finds the files that hold it, and downloads what is not bundled."""

    about: str
    licence: str
    source: str
    files: Callable[[], list[Path]]


def _bundled(folder: str, pattern: str) -> list[Path]:
    return sorted((BUNDLED / folder).glob(pattern))


def _downloaded(repository: str, patterns: Sequence[str]) -> list[Path]:
    """Return the files of a hub dataset that match each of `patterns`, in their order. Raises ConfigError where one has none."""
    from huggingface_hub import snapshot_download  # a second to import, needed for sets that are not bundled alone

    try:
        folder = Path(snapshot_download(repository, repo_type="dataset", allow_patterns=list(patterns)))
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{repository}: the hub gives no prompts ({reason}); name a file instead") from error
    found = [sorted(folder.glob(pattern)) for pattern in patterns]
    for pattern, files in zip(patterns, found, strict=True):
        if not files:
            raise ConfigError(f"{repository}: the dataset on the hub, or what is kept of it here, has no {pattern}; name a file instead")
    return [file for files in found for file in files]


PROMPT_SETS = {
    "partiprompts": PromptSet(
        "PartiPrompts: 1632 prompts in twelve categories, from single words to paragraphs",
        "Apache-2.0",
        "github.com/google-research/parti (2206.10789), bundled",
        partial(_bundled, "partiprompts", "*.tsv"),
    ),
    "geneval": PromptSet(
        "GenEval: 553 prompts of objects, counts, colours and places. Its own score needs an object detector and is not computed here; "
        "these are its prompts alone. `shapes/checks.py` has such a score for the embedded world",
        "MIT",
        "github.com/djghosh13/geneval (2310.11513), bundled",
        partial(_bundled, "geneval", "*.jsonl"),
    ),
    "t2i-compbench": PromptSet(
        "T2I-CompBench++: the training prompts of eight kinds (5559 distinct); its evaluation draws other ones",
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


def prompts_of(values: Sequence[str]) -> list[str]:
    """Return the prompts that `values` mean, in their order: each is the name of one of `PROMPT_SETS`, a file, or a prompt.

    A file is .txt with a prompt a line, a JSON list of texts, or any table (.tsv, .csv, .jsonl, .json, .parquet, .arrow) with a column
    prompt, caption or Prompt. A set holds each of its prompts once; in a file, and among prompts, one may come again. Raises ConfigError
    for a file that is not there and for what looks like the name of a file or set but is none, RecordError that names file and row for
    what is no prompt, TableError for a file without any.
    """
    return [prompt for value in values for prompt in _meant(value)]


def prompts_to_draw(
    values: Sequence[str], dataset_name: str | None = None, split: str | None = None, *, most: int | None = None, seed: int = 0
) -> list[str]:
    """Return the prompts that `values`, or else the table or dataset `dataset_name`, name, each once, and at most `most` of them.

    Raises ConfigError where both name prompts.
    """
    if values and dataset_name is not None:
        raise ConfigError("`prompts` and `dataset_name` both name prompts; leave one of them out")
    prompts: Iterable[str] = prompts_of(values)
    if dataset_name is not None and is_table(dataset_name):
        prompts = read_table(dataset_name).column("prompt")
    elif dataset_name is not None:
        prompts = (record.prompt for record in read(PROMPTS, dataset_name, split=split))
    return subset(list(dict.fromkeys(prompts)), most, seed)


def subset(prompts: Sequence[str], most: int | None, seed: int = 0, turn: int = 0) -> list[str]:
    """Return `most` of the prompts in their order, all if None or if they are fewer; every one is as likely, so sorted sets stay mixed.

    They are the first of a permutation by numpy's default_rng(seed): the same for the same list, and part of every larger subset. The next
    `turn` has the next of them, and after the last comes the first. Raises ConfigError where `most` is below one.
    """
    if most is None:
        return list(prompts)
    if most < 1:
        raise ConfigError(f"`max_prompts` is {most}; expected at least one prompt")
    count = min(most, len(prompts))
    kept = np.roll(np.random.default_rng(seed).permutation(len(prompts)), -turn * count)[:count]
    return [prompts[int(index)] for index in sorted(kept)]


def _meant(value: str) -> list[str]:
    if value in PROMPT_SETS:
        return list(dict.fromkeys(prompt for file in PROMPT_SETS[value].files() for prompt in _read(file)))
    if value.endswith(SUFFIXES) or re.fullmatch(r"\S+\.[A-Za-z]\w{1,7}", value):
        return _read(_file(value))
    if not re.search(r"\s", value) and get_close_matches(value.lower(), PROMPT_SETS, cutoff=NEAR):
        cure = did_you_mean(value.lower(), PROMPT_SETS)
        raise ConfigError(f"`prompts`: there is no set `{value}`.{cure}{CURE}")
    return [value]


def _file(value: str) -> Path:
    if not Path(value).is_file():
        cure = did_you_mean(Path(value).stem.lower(), PROMPT_SETS)
        raise ConfigError(f"`prompts`: there is no file {value}, and no set of that name.{cure}{CURE}")
    if not value.endswith(SUFFIXES):
        raise ConfigError(f"`prompts`: {value} is no kind of file that holds prompts; expected one of {', '.join(SUFFIXES)}")
    return Path(value)


def _read(path: Path) -> list[str]:
    prompts = []
    for record in read(PROMPTS, str(path)):
        if not record.prompt.strip():
            raise RecordError(f"{record.source}: the prompt is empty")
        prompts.append(record.prompt.strip())
    if not prompts:
        raise TableError(f"{path}: no prompt in the file; expected one a line")
    return prompts
