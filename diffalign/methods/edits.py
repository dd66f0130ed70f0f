"""Checks of what trains an edit model: keys, and data with input pictures. Nothing here imports torch."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import TYPE_CHECKING

from diffalign.core.documents import read_mapping
from diffalign.core.errors import CheckpointError, ConfigError, TableError
from diffalign.core.keys import ANY, require
from diffalign.core.runs import Run
from diffalign.data.table import CONDITIONING, is_table, read_table
from diffalign.methods.conditioning import CONTROLNET, check_validation_images
from diffalign.models.backbones.folders import LAYOUTS, Layout, is_local, resolve

if TYPE_CHECKING:
    import pyarrow as pa

    from diffalign.data.view import View
    from diffalign.methods.config import TrainConfig

COLUMN = "an edit model draws from one picture a record, in the column `conditioning_image`"


def layout_at(name: str) -> Layout | None:
    """Return the layout of a local pipeline folder, or of a hub id that lies in this machine's cache; None for anything else."""
    index = Path(resolve(name)) / "model_index.json"
    if not is_local(resolve(name)):
        from huggingface_hub import try_to_load_from_cache  # with its network library, which nothing else here imports
        from huggingface_hub.errors import HFValidationError

        with contextlib.suppress(HFValidationError):  # no hub id either
            index = Path(str(try_to_load_from_cache(name, index.name)))
    return LAYOUTS.get(str(read_mapping(index, CheckpointError).get("_class_name"))) if index.is_file() else None


def refuse_prompts_alone(name: str, layout: Layout | None = None) -> None:
    """Raise ConfigError for a model that draws from an input picture, where there are prompts alone; of a hub id, with its `layout`."""
    layout = layout or layout_at(name)
    if layout is not None and layout.picture == "needed":
        raise ConfigError(
            f"{name}: an edit model, which draws from an input picture, and here are prompts alone; use `diffalign.load(...)` with `image=`"
        )


def draws_edits(name: str, dataset_name: str | None, layout: Layout | None = None) -> bool:
    """Return whether a model or a run of one draws from input pictures: an edit model, or one that may and a table that has them.

    A hub id comes with its `layout`.
    """
    base = Run.open(name, expects=ANY).base if Run.is_in(name) else name
    layout = layout or layout_at(base)
    if layout is None or layout.picture != "optional":
        return layout is not None and layout.picture == "needed"
    return dataset_name is not None and is_table(dataset_name) and read_table(dataset_name)[0].conditioning_image is not None


def check_edit(config: TrainConfig, layout: Layout, tuning: str) -> None:
    """Raise ConfigError for keys that draw to prompts alone with an edit model, and for input pictures of any other model."""
    name = config.pretrained_model_name_or_path
    if layout.picture == "needed":
        for key in ("prompts", "generate", "eval_every"):
            expected = f"nothing with {name}, an edit model, which has no input pictures to draw from there: leave it out"
            require(key, getattr(config, key) or None, lambda _: False, expected)
    if layout.picture == "none" and tuning != CONTROLNET:
        expected = f"nothing, unless `train_method` is {CONTROLNET}, or the model an edit model"
        require("validation_image", config.validation_image or None, lambda _: False, expected)
    elif layout.picture == "needed" or config.validation_image:
        check_validation_images(config)


def check_inputs(view: View, layout: Layout) -> None:
    """Raise TableError where an edit model is trained, and a record of the view has no input picture, or candidates have their own.

    A model that may do without pictures has one for all records, or for none. No image is read.
    """
    if layout.picture == "none":
        return
    rows, lacking, having, start = set(view.entries.rows.tolist()), None, False, 0
    for batch in view.table.batches():
        for number, (own, single) in enumerate(zip(*_pictures(batch), strict=True)):
            if start + number not in rows:
                continue
            record = batch.column("id")[number].as_py()
            if single:
                raise TableError(f"{view.table.name}: candidates of record {record} have conditioning images of their own; {COLUMN}")
            lacking, having = lacking or (None if own else record), having or own
        start += batch.num_rows
    if lacking is not None and (having or layout.picture == "needed"):
        others = ", as other records have" if having else ""
        raise TableError(f"{view.table.name}: record {lacking} has no input picture{others}; {COLUMN}")


def inputs_of(view: View) -> bool:
    """Return whether the records of a view have input pictures, all of them or none."""
    return bool(view.entries) and view.table[view.entries[0].row].conditioning_image is not None


def _pictures(batch: pa.RecordBatch) -> tuple[list[bool], list[bool]]:
    """Return for each record whether it has a conditioning image, and whether a candidate has one of its own."""
    if CONDITIONING not in batch.schema.names:  # a table of the former schema
        return [False] * batch.num_rows, [False] * batch.num_rows
    lists = batch.column("candidates")
    own, offsets = lists.values.field(CONDITIONING).is_valid().to_pylist(), lists.offsets.to_pylist()
    single = [any(own[first:last]) for first, last in itertools.pairwise(offsets)]
    return batch.column(CONDITIONING).is_valid().to_pylist(), single
