"""Preference tables of a model's own images: K a prompt, drawn, scored, ranked; in shards, so that a killed run goes on where it was."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffalign.core.errors import ConfigError, TableError, did_you_mean
from diffalign.core.files import settle
from diffalign.core.processes import process_state
from diffalign.core.runs import Run
from diffalign.data.records import Record
from diffalign.data.table import Table, is_table, read_table, write_table
from diffalign.data.transforms.scores import share_beaten
from diffalign.infer.load import load
from diffalign.infer.options import GenerateConfig
from diffalign.infer.shards import Drawings, draw_shards, drawn_as, score_drawings, stamped
from diffalign.methods.builders.common import DTYPES
from diffalign.models.backbones.table import load_pipeline
from diffalign.rewards.table import SCORERS, check_scorers

HOW = ("images_per_prompt", "num_inference_steps", "guidance_scale", "resolution", "max_sequence_length", "seed", "mixed_precision")
WHAT = ("revision", "variant", "pretrained_vae_model_name_or_path")


def generate(config: GenerateConfig, prompts: Sequence[str]) -> Table | None:
    """Draw, score and rank images to `prompts`, and return the table; None in all processes of a launch but the first.

    Each process takes its share of the parts; the first one puts them together and removes them. Candidates lie in the order they
    were drawn in, with all scores, the `rank` (1 the best; equal ones share it), the model and the seed.
    Prompts with an image that a ranking scorer cannot judge are left out, and listed in the manifest.
    Raises ConfigError for settings that cannot be meant, and for parts of other settings without `overwrite`; TableError where a table
    lies in `output_dir` already, or no prompt is left.
    """
    check(config, prompts)
    torch.set_flush_denormal(True)
    drawings = _drawings(config, prompts)
    whole = _whole(config, drawings)
    state = process_state()
    own = range(0) if whole else range(state.process_index, len(drawings), state.num_processes)
    device = torch.device(state.device or "cpu")
    draw_shards(drawings, own, lambda: _pipeline(config, device))
    for spec in config.scorers:  # one is in memory at a time
        score_drawings([drawings], own, spec, str(device))
    state.wait_for_everyone()
    if not state.is_main_process:
        return None
    table = read_table(config.output_dir) if whole else _merge(config, drawings)
    shutil.rmtree(drawings.folder)
    return table


def check(config: GenerateConfig, prompts: Sequence[str]) -> None:
    """Raise the error that the settings deserve, before anything is loaded."""
    if not prompts:
        raise ConfigError("there is no prompt to draw; give --prompts, or --dataset_name")
    if not 2 <= config.images_per_prompt <= 16:
        raise ConfigError(f"`images_per_prompt` is {config.images_per_prompt}; expected 2 to 16, for a preference compares images")
    if not config.scorers:
        raise ConfigError(f"`scorers` is empty, and they rank the images. Known: {', '.join(sorted(SCORERS))}")
    check_scorers(config.scorers, config.rank_by)
    if config.min_margin < 0.0:
        raise ConfigError(f"`min_margin` is {config.min_margin}; expected zero or more")
    if Run.is_in(config.pretrained_model_name_or_path):
        run = Run.open(config.pretrained_model_name_or_path, expects="image")
        if run.personal:
            raise ConfigError(f"{run.folder}: a run of {run.method} that draws for a user; expected one that draws to prompts alone")
        for name in WHAT:
            if getattr(config, name) is not None:
                raise ConfigError(f"`{name}` is of a model, and {run.folder} is a finished run, which knows its own; leave it out")


def _drawings(config: GenerateConfig, prompts: Sequence[str]) -> Drawings:
    """Return where the images and scores lie until the table is whole."""
    name, path = config.pretrained_model_name_or_path, Path(config.output_dir).resolve()
    further = ("resolution", "max_sequence_length", "mixed_precision", *WHAT)
    return Drawings(
        folder=path.with_name(f"{path.name}.parts"),
        prompts=tuple(dict.fromkeys(prompts)),
        images_per_prompt=config.images_per_prompt,
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
        seed=config.seed,
        model=Path(name).resolve().name if Path(name).is_dir() else name,
        facts={option: getattr(config, option) for option in further} | stamped(name),
        command="pairs generate",
        overwrite=config.overwrite,
    )


def _whole(config: GenerateConfig, drawings: Drawings) -> bool:
    """Return whether the table is there, and a kill came before its parts were removed. Raises TableError for any other table there."""
    settle(Path(config.output_dir))
    if config.overwrite or not is_table(config.output_dir):
        return False
    table = read_table(config.output_dir)
    made, count = table.manifest, len(table) + table.manifest["rejected_rows"]
    asked = (_settings(config), config.scorers, len(drawings.prompts))
    same = (made.get("generated"), [about["spec"] for about in made.get("scorers", ())], count) == asked
    if same and drawings.folder.is_dir() and set(table.column("prompt")) <= set(drawings.prompts):
        return True
    raise TableError(f"{config.output_dir} exists already; choose another folder, or overwrite it with --overwrite")


def _settings(config: GenerateConfig) -> dict[str, Any]:
    """Return what a manifest says of how the table was made."""
    return {name: getattr(config, name) for name in (*HOW, *WHAT, "pretrained_model_name_or_path", "rank_by", "min_margin")}


def _pipeline(config: GenerateConfig, device: torch.device) -> tuple[Any, dict[str, Any]]:
    """Return the pipeline that draws, and what it is told of size and prompt length."""
    name = config.pretrained_model_name_or_path
    told = {option: getattr(config, option) for option in ("resolution", "max_sequence_length") if getattr(config, option) is not None}
    if Run.is_in(name):
        run = Run.open(name, expects="image")
        return load(name, dtype=DTYPES[config.mixed_precision or run.precision], device=device), drawn_as(run) | told
    options: dict[str, Any] = {"revision": config.revision, "variant": config.variant, "vae": config.pretrained_vae_model_name_or_path}
    return load_pipeline(name, **options, dtype=DTYPES[config.mixed_precision or "no"]).to(device), told


def _merge(config: GenerateConfig, drawings: Drawings) -> Table:
    """Write the table of all shards, ranked and filtered."""
    rejected: list[dict[str, str]] = []
    found = [drawings.scored(spec) for spec in config.scorers]
    names = [about["name"] for about, _ in found]
    if len(set(names)) < len(names):
        raise ConfigError(f"`scorers`: two of them give a score of the same name, of {', '.join(names)}; leave one out")
    if config.rank_by is not None and config.rank_by not in names:
        raise ConfigError(f"`rank_by` is {config.rank_by!r}, and no scorer gives it.{did_you_mean(config.rank_by, names)}")

    def kept() -> Iterator[Record]:
        for i, record in enumerate(drawings.records()):
            known = _with_scores(record, {about["name"]: values[i].tolist() for about, values in found})
            left, reason = ranked(known, names if config.rank_by is None else [config.rank_by], config.min_margin)
            if left is None:
                rejected.append({"where": record.source, "reason": f"{record.prompt!r}: {reason}"})
            else:
                yield left

    scorers = [about | {"unjudged": int(np.isnan(values).sum())} for about, values in found]
    about = {"generated": _settings(config), "scorers": scorers}
    return write_table(config.output_dir, kept(), rejected=rejected, overwrite=config.overwrite, **about)


def _with_scores(record: Record, scores: Mapping[str, Sequence[float]]) -> Record:
    """Return the record with each candidate's scores; a candidate that a scorer could not judge has none of that name."""
    known = [
        replace(candidate, scores={name: values[k] for name, values in scores.items() if not math.isnan(values[k])})
        for k, candidate in enumerate(record.candidates)
    ]
    return replace(record, candidates=tuple(known))


def standing(record: Record, by: Sequence[str]) -> list[float]:
    """Return what ranks each candidate, higher is better: its score if `by` names one, of several its mean share of the others beaten."""
    if len(by) == 1:
        return [candidate.scores[by[0]] for candidate in record.candidates]
    (shared,) = share_beaten(record, scores=by, into="share")
    return [candidate.scores["share"] for candidate in shared.candidates]


def ranked(record: Record, by: Sequence[str], min_margin: float) -> tuple[Record | None, str]:
    """Return the record with the rank of every candidate by the scores `by`, or None where it is left out, and why.

    The best has rank 1; equal ones share the smallest. Left out are records with a candidate that lacks a score, and those whose best
    is less than `min_margin` ahead of the worst.
    """
    lacking = sum(any(name not in candidate.scores for name in by) for candidate in record.candidates)
    if lacking:
        return None, f"{lacking} of its {len(record.candidates)} images could not be judged"
    own = standing(record, by)
    margin = max(own) - min(own)
    if margin < min_margin:
        return None, f"its best image is {margin:g} ahead of the worst, less than {min_margin:g}"
    ranks = [1.0 + sum(other > x for other in own) for x in own]
    return replace(record, candidates=tuple(replace(c, rank=r) for c, r in zip(record.candidates, ranks, strict=True))), ""
