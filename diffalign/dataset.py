"""Opens whatever `dataset_name` names as a view on a preference table: imports it if it is none yet, and applies the transforms.

Nothing here imports torch, so a bad dataset is refused before any weight loads.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from diffalign.conditioning.settings import USER_ENCODERS
from diffalign.config import TrainConfig
from diffalign.data.readers import READERS, read
from diffalign.data.readers.detect import detect
from diffalign.data.table import Table, is_table, read_table, write_table
from diffalign.data.transforms import TRANSFORMS, Transform
from diffalign.data.view import View, with_users
from diffalign.errors import ConfigError, TableError, did_you_mean
from diffalign.methods import METHODS
from diffalign.specs import Spec, bind


def import_dataset(
    source: str,
    path: Path,
    *,
    reader: str | None = None,
    split: str | None = None,
    skip_bad: bool = False,
    overwrite: bool = False,
    limit: int | None = None,
) -> Table:
    """Read `source` with the named reader (or the one its columns fit) into a table at `path`, and return it.

    Raises ConfigError for an unknown reader, RecordError for the first bad row unless `skip_bad`, TableError if no row is left.
    """
    name = reader or detect(source, split)
    if name not in READERS:
        raise ConfigError(f"there is no reader `{name}`.{did_you_mean(name, READERS)}")
    rejected: list[dict[str, str]] = []
    records = read(READERS[name], source, split=split, rejected=rejected if skip_bad else None)
    bar = tqdm(itertools.islice(records, limit), desc=f"import {name}", unit=" rows", total=limit, disable=None)
    return write_table(path, bar, rejected=rejected, overwrite=overwrite, reader=name, dataset_name=source, split=split)


def open_dataset(config: TrainConfig, *, reuse: bool = False) -> View:
    """Return the training records of `config`; with `reuse`, those that another process has just imported.

    Raises TableError if no pair with a preference is left after the transforms.
    """
    specs = METHODS[config.method].transforms if config.transforms is None else config.transforms
    for spec in specs:  # before an import that may take hours; the score range of soft_label is known only after it
        bind("transform", TRANSFORMS, spec, low=0.0, high=1.0)
    table = read_table(config.dataset_name) if is_table(config.dataset_name) else _imported(config, reuse)
    view = View(table, [_transform(spec, table) for spec in specs], config.max_train_samples)
    if config.users is not None:
        view = with_users(view, bind("user_encoder", USER_ENCODERS, config.users)().least)
    if table.manifest["kind"] != "image" and any(entry.order for entry in view.entries):
        raise TableError(f"{config.dataset_name}: a table of {table.manifest['kind']}s; method `{config.method}` trains on pairs of images")
    if not any(entry.prob != 0.5 for entry in view.entries):
        left = f"{table.manifest['strict']} strict pairs, {table.manifest['ties']} ties"
        raise TableError(
            f"{config.dataset_name}: no pair with a preference is left of {len(table)} records ({left}); nothing to learn from"
        )
    return view


def _imported(config: TrainConfig, reuse: bool) -> Table:
    path = Path(config.output_dir) / "data"
    if is_table(path) and (reuse or config.resume_from_checkpoint):
        return read_table(path)
    return import_dataset(
        config.dataset_name,
        path,
        reader=config.reader,
        split=config.dataset_split_name,
        skip_bad=config.skip_bad,
        overwrite=is_table(path),
        limit=config.max_train_samples,
    )


def _transform(spec: Spec, table: Table) -> Transform:
    """Return a transform with its constants; the score range of `soft_label` comes from the manifest where it is not given."""
    defaults: dict[str, Any] = {}
    if isinstance(spec, Mapping) and "soft_label" in spec:
        score = (spec["soft_label"] or {}).get("score", "")
        known = table.manifest["scores"]
        if score not in known:
            raise ConfigError(f"transform `soft_label`: the table has no score `{score}`.{did_you_mean(score, known)}")
        defaults = {"low": known[score]["min"], "high": known[score]["max"]}
    return bind("transform", TRANSFORMS, spec, **defaults)
