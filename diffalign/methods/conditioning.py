"""Checks of what trains a ControlNet: keys, and data with conditioning images. Nothing here imports torch."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from diffalign.core.errors import ConfigError, TableError
from diffalign.core.keys import require
from diffalign.core.runs import Run
from diffalign.data.table import CONDITIONING, Table
from diffalign.models.backbones.folders import LAYOUTS, Layout

if TYPE_CHECKING:
    import pyarrow as pa

    from diffalign.methods.base import Method
    from diffalign.methods.config import TrainConfig

logger = logging.getLogger(__name__)
CONTROLNET = "controlnet"  # what `train_method` is called


def check_controlnet(config: TrainConfig, method: Method, tuning: str, transforms: list[str]) -> None:
    """Raise ConfigError where the keys of a ControlNet are not meant, or not together."""
    if tuning != CONTROLNET:
        name = "controlnet_model_name_or_path"
        require(name, getattr(config, name), lambda _: False, f"nothing, unless `train_method` is {CONTROLNET}")
        return
    if method.inference != "plain" or "prompt_only" in transforms:
        raise ConfigError(f"`train_method` is {CONTROLNET}, and `{config.method}` does not learn from pictures of conditioning images")
    drawn = "has no conditioning images to draw to: leave it out"
    for name in ("prompts", "generate", "eval_every"):
        require(name, getattr(config, name) or None, lambda _: False, f"nothing with `train_method` {CONTROLNET}, which {drawn}")
    require("start_from", config.start_from, lambda _: False, "nothing; a ControlNet goes on from --controlnet_model_name_or_path")
    if (folder := config.controlnet_model_name_or_path) is not None and Run.is_in(folder):
        raise ConfigError(f"`controlnet_model_name_or_path` is {folder}, a run; expected the ControlNet in it, {folder}/{CONTROLNET}")
    check_validation_images(config)


def check_validation_images(config: TrainConfig) -> None:
    """Raise ConfigError where the validation prompts do not have an image each, or one for all."""
    images, prompts = len(config.validation_image), len(config.validation_prompts)
    if images != prompts and (prompts == 0 or images != 1):
        raise ConfigError(
            f"`validation_image` has {images} files, and there are {prompts} `validation_prompts`; expected a file each, or one for all"
        )
    for file in config.validation_image:
        require("validation_image", file, lambda v: Path(v).is_file(), "the file of a picture")


def check_controls(layout: Layout, name: str, tuning: str) -> None:
    """Raise ConfigError where a ControlNet is to be trained for a family that has none here."""
    if tuning == CONTROLNET and not layout.controls:
        families = ", ".join(dict.fromkeys(one.family for one in LAYOUTS.values() if one.controls))
        raise ConfigError(f"`train_method` is {CONTROLNET}, and {name} is of the family {layout.family}; expected one of {families}")


def check_conditioning(table: Table, rows: set[int], tuning: str) -> None:
    """Raise TableError where a ControlNet is trained, and one of the table's `rows` has pictures without conditioning images.

    Log that there are some where none is trained. No image is read.
    """
    lacking, there, start = None, False, 0
    for batch in table.batches():
        has = _conditioned(batch)
        there = there or any(has)
        lacking = lacking or next((batch.column("id")[i].as_py() for i, own in enumerate(has) if not own and start + i in rows), None)
        start += len(has)
    if tuning == CONTROLNET and lacking is not None:
        raise TableError(
            f"{table.name}: record {lacking} has no conditioning image, and `train_method` {CONTROLNET} needs one for every picture; "
            "give the column `conditioning_image`, or `conditioning_image_0` and `conditioning_image_1`"
        )
    if tuning != CONTROLNET and there:
        logger.info("%s: its conditioning images are not used; `train_method` %s trains a ControlNet on them", table.name, CONTROLNET)


def _conditioned(batch: pa.RecordBatch) -> list[bool]:
    """Return whether each record has a conditioning image, or all of its candidates have one of their own."""
    if CONDITIONING not in batch.schema.names:  # a table of the former schema
        return [False] * batch.num_rows
    lists, shared = batch.column("candidates"), batch.column(CONDITIONING).is_valid().to_pylist()
    own, offsets = lists.values.field(CONDITIONING).is_valid().to_pylist(), lists.offsets.to_pylist()
    spans = itertools.pairwise(offsets)
    return [common or (first < last and all(own[first:last])) for common, (first, last) in zip(shared, spans, strict=True)]
