"""Opens whatever `dataset_name` names as a view on a preference table: imports it if it is none yet, and applies the transforms.

Nothing here imports torch, so a bad dataset is refused before any weight loads.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffalign.core.claim import ASIDE
from diffalign.core.errors import ConfigError, TableError, did_you_mean
from diffalign.core.files import write
from diffalign.core.specs import Spec, bind, single
from diffalign.data.attributes import attributes_of
from diffalign.data.duplicates import repeat_warning
from diffalign.data.fewshot import contexts
from diffalign.data.importing import import_dataset, stamp_of
from diffalign.data.problems import shortcut_warnings
from diffalign.data.readers.unpaired import LIKED
from diffalign.data.records import Record
from diffalign.data.table import MANIFEST, Table, is_table, keep_caches, read_table
from diffalign.data.transforms import TRANSFORMS, Transform, apply, share_beaten
from diffalign.data.transforms.filters import SHARE, threshold
from diffalign.data.transforms.strength import typical_gaps
from diffalign.data.units import check_points, check_range
from diffalign.data.usage import ALONE
from diffalign.data.view import View, with_users, without_content
from diffalign.methods.checks import parse_buckets
from diffalign.methods.conditioning import check_conditioning
from diffalign.methods.config import TrainConfig
from diffalign.methods.edits import check_inputs, layout_at
from diffalign.methods.recipe import Recipe
from diffalign.models.users.settings import SliderSettings
from diffalign.objectives import Facts
from diffalign.rewards.heads.settings import reads_texts, settings_of

logger = logging.getLogger(__name__)
GLANCED = 500  # rows that are looked at for shortcuts before training


def open_dataset(config: TrainConfig, recipe: Recipe, *, reuse: bool = False) -> View:
    """Return the training records of `config`; with `reuse`, those that another process has just imported.

    Raises TableError if the table is not of the kind that the model trains on, lacks a score or the candidates that the objective needs,
    if the objective cannot use what the transforms say of records, or if no preference is left after them.
    """
    specs, objective, needs = recipe.transforms, recipe.objective.name, recipe.facts
    table = read_table(config.dataset_name) if is_table(config.dataset_name) else _imported(config, reuse)
    view = view_of(table, config, recipe)
    if not reuse:
        _warn(table, parse_buckets(config.aspect_ratio_buckets))
    if sliders := sliders_of(recipe):
        attributes_of(view, sliders)
    elif recipe.users is not None:
        view = with_users(view, recipe.users().least)
    kind = recipe.kind
    if kind == "reward":  # which judges images, or texts by a language model's hidden states
        kind = "text" if reads_texts(config.pretrained_model_name_or_path) else "image"
    compared = bool(view.entries.counts.any())
    if kind is not None and table.manifest["kind"] != kind and compared:
        raise TableError(f"{config.dataset_name}: a table of {table.manifest['kind']}s; the model of this run trains on pairs of {kind}s")
    layout = layout_at(config.pretrained_model_name_or_path) if kind == "image" else None
    if layout is not None and layout.picture != "none":
        check_inputs(view, layout)
    elif kind == "image" and compared:
        check_conditioning(table, set(view.entries.rows.tolist()), recipe.tuning)
    if kind == "image" and compared:
        _check_prompts(table)
    if needs.candidates == 1:
        _leave_out_disliked(objective, view)
    _check_preferences(config, view, specs, unpaired=needs.unpaired)
    check_view(view, config, recipe)
    if view.usage.dropped and not reuse:
        logger.info("%s: %s", table.name, view.usage)
    return view


def view_of(table: Table, config: TrainConfig, recipe: Recipe) -> View:
    """Return the view on a table that a recipe trains on: after its transforms, with the columns that its objective reads."""
    columns, transforms = _columns(config.scores, recipe.facts, table, recipe.transforms)
    if recipe.method.inference == "reward":
        columns |= {score: score for score in settings_of(config.reward_head, config.method)[1].columns}
    columns |= _slider_columns(table, recipe)
    for spec in recipe.transforms:
        transforms.append(_transform(spec, table, transforms, config.max_train_samples))
    return View(table, transforms, config.max_train_samples, columns)


def sliders_of(recipe: Recipe) -> Sequence[str]:
    """Return the scores that a recipe trains sliders of."""
    settings = None if recipe.users is None else recipe.users()
    return settings.attributes if isinstance(settings, SliderSettings) else ()


def _slider_columns(table: Table, recipe: Recipe) -> dict[str, str]:
    """Return the scores of sliders as columns. Raises TableError for one that neither the table has nor a transform makes."""
    bound = [bind("transform", TRANSFORMS, spec, low=0.0, high=1.0, most=0.0, candidates=2) for spec in recipe.transforms]
    scores = {*table.manifest["scores"], *(one.constants["into"] for one in bound if "into" in one.constants)}
    for name in sliders_of(recipe):
        if name not in scores:
            there = did_you_mean(name, scores) if scores else " It has no scores"
            raise TableError(f"{table.path}: no score `{name}` for a slider to learn.{there}; `diffalign score` gives pictures scores")
    return {name: name for name in sliders_of(recipe)}


def check_view(view: View, config: TrainConfig, recipe: Recipe) -> None:
    """Raise TableError where the objective cannot use the candidates or the labels of a view's records."""
    _check_candidates(recipe.objective.name, recipe.facts, view)
    _check_labels(recipe.objective.name, recipe.facts, view, config.scores)


def _check_preferences(config: TrainConfig, view: View, specs: Sequence[Spec], *, unpaired: bool) -> None:
    """Raise TableError where no preference is left, and where most records state none, unless the config names its own transforms."""
    name, facts = config.dataset_name, view.table.manifest
    if config.transforms is None and unpaired and view.usage.dropped[ALONE]:
        raise TableError(
            f"{name}: {view.usage.dropped[ALONE]} records are votes on one candidate, which the transforms leave out; to train on them "
            "write `transforms: [singles]`, which makes such votes of pairs and rankings, too"
        )
    if not ((view.entries.prob != 0.5) | (view.entries.counts > 2)).any():
        left = f"{facts['strict']} strict pairs, {facts['ties']} ties"
        raise TableError(
            f"{name}: no pair with a preference is left of {len(view.table)} records ({left}); nothing to learn from. {view.usage}"
        )
    if unpaired and (view.entries.counts == 1).all() and len(kinds := np.unique(np.sign(view.entries.prob - 0.5))) == 1:
        what = "disliked, and nothing says what to draw instead" if kinds[0] < 0.0 else "liked, and nothing says what to leave"
        logger.warning("%s: all %d candidates are %s; add votes of the other kind", name, len(view.entries), what)
    if config.transforms is None and 2 * view.usage.without_preference() > view.usage.records:
        raise TableError(
            f"{name}: most records state no preference between two candidates ({view.usage}). Give them labels or ranks; or, to train "
            f"on the others, name the transforms yourself, here `transforms: {list(specs)}`"
        )


def _leave_out_disliked(objective: str, view: View) -> None:
    """Leave out records whose first candidate is disliked, for an objective that learns from the first candidate of every record.

    Lone candidates are so by their label, others by the score `liked`: of two disliked ones one may be the better. Raises TableError for a
    pair whose first candidate is not the preferred one.
    """
    disliked = view.entries.prob < 0.5
    if len(places := np.flatnonzero(disliked & (view.entries.counts > 1))):
        odd = view.entries[int(places[0])]
        raise TableError(
            f"{view.table.path}: objective `{objective}` learns from the first candidate, and in {odd.id} that is the dispreferred one "
            f"(prob {odd.prob:g}): put `orient` among the transforms"
        )
    if LIKED in view.table.manifest["scores"]:
        liked = [[candidate.scores.get(LIKED) for candidate in record.candidates] for record in without_content(view.table)]
        disliked |= np.array([bool(entry.order) and liked[entry.row][entry.order[0]] == 0.0 for entry in view.entries])
    view.keep(np.flatnonzero(~disliked), f"are disliked, and `{objective}` learns from liked ones")


def _check_prompts(table: Table) -> None:
    """Raise TableError where candidates of images have prompts of their own, which training on images does not read."""
    if all(batch.column("candidates").values.field("prompt").null_count == _candidates(batch) for batch in table.batches()):
        return
    for record in without_content(table):
        if odd := next((c.prompt for c in record.candidates if c.prompt not in (None, record.prompt)), None):
            raise TableError(
                f"{table.path}: a candidate of {record.id} has a prompt of its own, {odd[:60]!r}; training on images gives all candidates "
                "of a record one prompt. Write a record for each prompt"
            )


def _candidates(batch: Any) -> int:
    return len(batch.column("candidates").values)


def _warn(table: Table, buckets: Sequence[tuple[int, int]]) -> None:
    """Log what spoils training on the table, as far as a moment's look at some of its rows shows."""
    warnings = [*shortcut_warnings(table, buckets, rows=GLANCED, decoded=0), repeat_warning(table.manifest.get("repeats", {}))]
    for warning in filter(None, warnings):
        logger.warning("%s: %s", table.name, warning)


def _columns(scores: Mapping[str, str], needs: Facts, table: Table, specs: Sequence[Spec]) -> tuple[dict[str, str], list[Transform]]:
    """Return for each column of the objective the score that it is read from, and the transforms that must run first.

    The config's `scores` decides, else the column's own name. Optional columns are read only if `scores` names them or a transform makes
    them. Where nothing gives `gains` and the table has one score, they are that score or, if the objective needs chances of winning, the
    share of the other candidates that each beats by it. Without any score they are that share by ranks and labels.
    """
    written, table_scores = [single("transform", spec) for spec in specs], table.manifest["scores"]
    made = {constants.get("into", "gains" if name == "share_beaten" else None) for name, constants in written}
    columns = {column: column for column in (*needs.columns, *(c for c in needs.optional if c in made))} | dict(scores)
    if columns.get("gains") != "gains" or "gains" in made or "gains" in table_scores or len(table_scores) > 1:
        return columns, []
    if table_scores and not needs.chances:
        return columns | {"gains": next(iter(table_scores))}, []
    return columns, [functools.partial(share_beaten, scores=tuple(table_scores))]


def _check_candidates(objective: str, needs: Facts, view: View) -> None:
    """Raise TableError where the records have too few candidates for the objective, or cannot share a batch."""
    needed, counts = needs.least, np.unique(view.entries.counts).tolist()
    cure = "put `pairs`, or {list_of: {candidates: K}}, among the transforms"
    if len(counts) > 1:
        numbers = " and ".join(map(str, counts))
        cure = f"{cure}, or `singles` for votes on one candidate each" if needs.unpaired else cure
        raise TableError(f"{view.table.path}: records of {numbers} candidates; those of a batch have equally many: {cure}")
    if counts[0] < needed and needed > 1:  # a method that makes its own pictures needs none
        if counts[0] == 1:
            cure = f"{cure}; a label of one candidate alone, as KTO's data have, compares nothing: train on it with "
            cure += "`kto`, `bco` or `diffusion_kto`, or give each prompt a second candidate"
        raise TableError(
            f"{view.table.path}: objective `{objective}` compares {needed} candidates a record; found {counts[0]} after the "
            f"transforms: {cure if needed == 2 else 'choose transforms that keep them all'}"
        )
    if needs.lists and counts[0] > 2 and "gains" not in view.columns:
        raise TableError(
            f"{view.table.path}: objective `{objective}` reads `gains` of lists, here of {counts[0]} candidates: name a score as "
            "`scores: {gains: NAME}`, or put `share_beaten` first among the transforms"
        )


def _check_labels(objective: str, needs: Facts, view: View, scores: Mapping[str, str]) -> None:
    """Raise TableError for weights or offsets that the objective cannot use, and for gains outside [0, 1] where it needs chances."""
    if needs.of_ranks and view.entries.weighted:
        raise TableError(
            f"{view.table.path}: the losses of `{objective}` belong to ranks within the batch, and records cannot have a weight or an "
            "offset: leave out the transforms that give them (`semantic_weight`, `offset_by`) "
            "and the table's column `weight`, or choose another objective"
        )
    if not needs.chances or "gains" not in view.columns:
        return
    place, score = view.columns.index("gains"), scores.get("gains", "gains")
    for entry in view.entries:
        if odd := [gain for gain in entry.columns[place] if not 0.0 <= gain <= 1.0]:
            raise TableError(
                f"{view.table.path}: objective `{objective}` reads `gains` as chances of winning, in [0, 1], and `{score}` is {odd[0]:g} "
                f"in {entry.id}: put {{share_beaten: {{scores: [{score}]}}}} before the transforms that leave candidates out, and take "
                "`gains` out of `scores`"
            )


def _imported(config: TrainConfig, reuse: bool) -> Table:
    """Return the table of the run's folder, imported now unless another process has just done so or a run goes on with the same data."""
    path = Path(config.output_dir) / "data"
    if is_table(path) and reuse:
        return read_table(path)
    if is_table(path) and config.resume_from_checkpoint:
        kept = read_table(path)
        if not (changes := _changes(kept, config)):
            return kept
        if any(Path(config.output_dir).glob("checkpoint-*")):
            return _with_new_facts(kept, config, changes)
        logger.info("%s: imported again (%s)", config.dataset_name, "; ".join(changes))
    table = _import(config, path)
    keep_caches(Path(config.output_dir) / ASIDE / "data", table.path)  # of a run that this one overwrites
    return table


def _import(config: TrainConfig, path: Path) -> Table:
    return import_dataset(
        config.dataset_name,
        path,
        reader=config.reader,
        split=config.dataset_split_name,
        skip_bad=config.skip_bad,
        overwrite=is_table(path),
        limit=config.max_train_samples,
    )


def _changes(table: Table, config: TrainConfig) -> list[str]:
    """Return in what the config's dataset is not that which a table was imported from, as far as names, sizes and times tell."""
    before, stamp = table.manifest, stamp_of(config.dataset_name)
    if stamp is None and before.get("stamp") is not None:
        raise TableError(
            f"{config.dataset_name}: there is no such file or folder, and the run was begun on {before.get('dataset_name')}; put it back, "
            "or choose another output_dir"
        )
    now = {"dataset_name": config.dataset_name, "split": config.dataset_split_name, "limit": config.max_train_samples, "stamp": stamp}
    if config.reader is not None:
        now["reader"] = config.reader
    different = [name for name, value in now.items() if before.get(name) != value and (name in before or name == "stamp")]
    return ["its files have changed" if name == "stamp" else f"{name}: {before.get(name)} -> {now[name]}" for name in different]


def _with_new_facts(kept: Table, config: TrainConfig, changes: Sequence[str]) -> Table:
    """Return a run's table, where the dataset as it is now still gives the same records. Raises TableError where it does not."""
    with tempfile.TemporaryDirectory(prefix="diffalign-") as folder:
        new = _import(config, Path(folder) / "data")
        if new.fingerprint != kept.fingerprint:
            raise TableError(
                f"{config.dataset_name}: not the data that the checkpoints in {config.output_dir} were trained on ({'; '.join(changes)}); "
                "go on with the former data, or choose another output_dir"
            )
        manifest = new.manifest
    write({kept.path / MANIFEST: json.dumps(manifest, indent=2) + "\n"})
    return read_table(kept.path)


def _transform(spec: Spec, table: Table, before: Sequence[Transform], limit: int | None) -> Transform:
    """Return a transform with its constants, those that come from the data where they are not given.

    The score range of `soft_label` stands in the manifest; the threshold of `lowest` and the units of `by_strength` are those of what the
    transforms `before` leave, and `list_of` takes as many candidates as most of these have, and of two numbers that are equally common
    the larger.
    """
    name, constants = single("transform", spec)
    defaults: dict[str, Any] = {}
    if name == "soft_label":
        score = constants.get("score", "")
        table_scores = table.manifest["scores"]
        if score not in table_scores:
            raise ConfigError(f"transform `soft_label`: the table has no score `{score}`.{did_you_mean(score, table_scores)}")
        defaults = {"low": table_scores[score]["min"], "high": table_scores[score]["max"]}
        check_range(table, score, **{end: constants.get(end, value) for end, value in defaults.items()})
    if name == "reward_conditioned" and not {"template", "low", "high"} & set(constants):
        check_points(table, constants.get("score", ""))
    records = apply(itertools.islice(without_content(table), limit), before)
    if name == "list_of" and "candidates" not in constants:
        counts = Counter(len(record.candidates) for record in records)
        defaults = {"candidates": max(counts, key=lambda count: (counts[count], count), default=2)}
    if name == "by_strength" and "units" not in constants:
        defaults = {"units": typical_gaps(records, constants.get("scores", ()))}
    if name == "lowest" and "most" not in constants:
        defaults = {"most": threshold(records, constants["score"], constants.get("share", SHARE))}
    if name == "fewshot_context" and "contexts" not in constants:
        defaults = {"contexts": _contexts(spec, table, before, limit)}
    return bind("transform", TRANSFORMS, spec, **defaults)


def _contexts(spec: Spec, table: Table, before: Sequence[Transform], limit: int | None) -> Mapping[tuple[str, str], str]:
    """Return the votes that `fewshot_context` writes in front of each prompt."""
    bound = bind("transform", TRANSFORMS, spec)
    bound(Record("", "", ()))  # which checks its constants
    return contexts(table, before, limit, **{key: bound.constants[key] for key in ("shots", "seed", "template")})
