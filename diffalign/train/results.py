"""What a run leaves in its folder, and what of an earlier run a new one replaces."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffalign.core.errors import ConfigError
from diffalign.core.runs import CONFIG, RUN
from diffalign.methods.config import TrainConfig
from diffalign.models.adapter_files import MODEL, PEFT_CONFIG, PEFT_WEIGHTS, WEIGHTS
from diffalign.models.users.store import BRANCH, ENCODER
from diffalign.rewards.heads.store import FILE

# Weights, and what is measured of them.
RESULTS = (WEIGHTS, PEFT_WEIGHTS, PEFT_CONFIG, "unet", "transformer", BRANCH, ENCODER, MODEL, FILE, "reliability.png", "held_out")
PARTS = "data.parts"  # what an online run has drawn, turn by turn
# The rest of a run, as patterns.
FILES = (
    RUN,
    CONFIG,
    "train_log.jsonl",
    "eval.jsonl",
    "checkpoint-*",
    "round-*",
    "validation",
    "eval",
    "best",
    "logs",
    "data",
    PARTS,
)


def replaced_by(config: TrainConfig) -> Sequence[str]:
    """Return the patterns of what a run moves aside in its folder: all of an earlier run where it is to be overwritten, else nothing.

    A table in the folder that the new run trains on stays. Raises ConfigError where the new run needs something else of the old one.
    """
    folder = Path(config.output_dir)
    if config.resume_from_checkpoint or not config.overwrite_output_dir:
        return ()
    patterns = (*RESULTS, *FILES)
    if Path(config.dataset_name or ".").resolve() == (folder / "data").resolve():
        patterns = tuple(pattern for pattern in patterns if pattern != "data")
    moved = {path.resolve() for pattern in patterns for path in folder.glob(pattern)}
    for key, value in _paths(dataclasses.asdict(config)):
        path = Path(value).resolve()
        if (path == folder.resolve() and key != "output_dir" and moved) or moved & {path, *path.parents}:
            raise ConfigError(f"`{key}` is {value}, in the run that is to be overwritten ({folder}); choose another output_dir")
    return patterns


def _paths(values: Mapping[str, Any], key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the key and the text of every value, however deep, that is a file or folder which exists."""
    for name, value in values.items():
        inner = value if isinstance(value, list) else [value]
        for one in inner:
            if isinstance(one, Mapping):
                yield from _paths(one, key or name)
            elif isinstance(one, str) and 0 < len(one) < 4096 and "\0" not in one and Path(one).exists():
                yield key or name, one
