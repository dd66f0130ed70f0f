"""Opens whatever `dataset_name` names as a view on a preference table: imports it if it is none yet, and applies the transforms.

Nothing here imports torch, so a bad dataset is refused before any weight loads.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from diffalign.conditioning.settings import USER_ENCODERS
from diffalign.config import TrainConfig
from diffalign.data.readers import READERS, read
from diffalign.data.readers.detect import detect
from diffalign.data.table import Table, is_table, read_table, write_table
from diffalign.data.transforms import TRANSFORMS, Transform, apply, share_beaten
from diffalign.data.transforms.filters import SHARE, threshold
from diffalign.data.view import View, with_users, without_content
from diffalign.errors import ConfigError, TableError, did_you_mean
from diffalign.methods import METHODS
from diffalign.objectives import facts
from diffalign.specs import Spec, bind, single


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


def open_dataset(config: TrainConfig, *, reuse: bool = False, kind: str | None = "image") -> View:
    """Return the training records of `config`; with `reuse`, those that another process has just imported.

    `kind` is what the model trains on, image or text; None where that is not known yet. Raises TableError if the table is of another
    kind, lacks a score or the candidates that the objective needs, or if no preference is left after the transforms.
    """
    specs = METHODS[config.method].transforms if config.transforms is None else config.transforms
    for spec in specs:  # before an import that may take hours; constants that come from the data are known only after it
        bind("transform", TRANSFORMS, spec, low=0.0, high=1.0, most=0.0)
    table = read_table(config.dataset_name) if is_table(config.dataset_name) else _imported(config, reuse)
    columns, transforms = _columns(config, table, specs)
    for spec in specs:
        transforms.append(_transform(spec, table, transforms, config.max_train_samples))
    view = View(table, transforms, config.max_train_samples, columns)
    if config.users is not None:
        view = with_users(view, bind("user_encoder", USER_ENCODERS, config.users)().least)
    if kind is not None and table.manifest["kind"] != kind and any(entry.order for entry in view.entries):
        raise TableError(f"{config.dataset_name}: a table of {table.manifest['kind']}s; the model of this run trains on pairs of {kind}s")
    if not any(entry.prob != 0.5 or len(entry.order) > 2 for entry in view.entries):
        left = f"{table.manifest['strict']} strict pairs, {table.manifest['ties']} ties"
        raise TableError(
            f"{config.dataset_name}: no pair with a preference is left of {len(table)} records ({left}); nothing to learn from"
        )
    _check_candidates(config, view)
    return view


def _columns(config: TrainConfig, table: Table, specs: Sequence[Spec]) -> tuple[dict[str, str], list[Transform]]:
    """Return the score that each column of the objective is read from, and the transforms that must come first for it.

    `scores` of the config says it, then the column's own name. `gains` that nothing gives are the table's score, if it has exactly one;
    of ranks and labels alone they are the share of the other candidates that each beats.
    """
    ((objective, _),) = config.part("objective").items()
    columns = dict(zip(own := facts(objective).columns, own, strict=True)) | config.scores
    parts, known = [single("transform", spec) for spec in specs], table.manifest["scores"]
    made = any(name == "share_beaten" or constants.get("into") == "gains" for name, constants in parts)
    if columns.get("gains") != "gains" or made or "gains" in known:
        return columns, []
    if len(known) == 1:
        return columns | {"gains": next(iter(known))}, []
    return columns, [] if known else [share_beaten]


def _check_candidates(config: TrainConfig, view: View) -> None:
    """Raise TableError where the records have too few candidates for the objective, or cannot share a batch."""
    ((objective, _),) = config.part("objective").items()
    needed, counts = facts(objective).candidates, sorted({len(entry.order) for entry in view.entries})
    cure = "put `pairs`, or {list_of: {candidates: K}}, among the transforms"
    if len(counts) > 1:
        found = " and ".join(map(str, counts))
        raise TableError(f"{config.dataset_name}: records of {found} candidates; those of a batch have equally many: {cure}")
    if counts[0] < needed and needed > 1:  # a method that makes its own pictures needs none
        raise TableError(
            f"{config.dataset_name}: objective `{objective}` compares {needed} candidates a record; found {counts[0]} after the "
            f"transforms: {cure if needed == 2 else 'choose transforms that keep them all'}"
        )


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


def _transform(spec: Spec, table: Table, before: Sequence[Transform], limit: int | None) -> Transform:
    """Return a transform with its constants, those that come from the data where they are not given.

    The score range of `soft_label` stands in the manifest; the threshold of `lowest` is that of what the transforms `before` leave.
    """
    name, constants = single("transform", spec)
    defaults: dict[str, Any] = {}
    if name == "soft_label":
        score = constants.get("score", "")
        known = table.manifest["scores"]
        if score not in known:
            raise ConfigError(f"transform `soft_label`: the table has no score `{score}`.{did_you_mean(score, known)}")
        defaults = {"low": known[score]["min"], "high": known[score]["max"]}
    if name == "lowest" and "most" not in constants:
        records = apply(itertools.islice(without_content(table), limit), before)
        defaults = {"most": threshold(records, constants["score"], constants.get("share", SHARE))}
    return bind("transform", TRANSFORMS, spec, **defaults)
