"""Preference tables of a model's own images: K a prompt, drawn, scored, ranked; in shards, so that a killed run goes on where it was."""

from __future__ import annotations

import functools
import logging
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
from diffalign.infer.shards import Drawings, distinct, draw_shards, drawn_as, score_drawings, stamped
from diffalign.infer.text.meaning import SentenceDistance
from diffalign.infer.text.rewrites import Writing, as_texts
from diffalign.methods.builders.common import DTYPES
from diffalign.methods.edits import refuse_prompts_alone
from diffalign.models.backbones.base_lora import BaseLora
from diffalign.models.backbones.folders import check_folder, check_language_model, is_local, resolve
from diffalign.models.backbones.table import load_pipeline
from diffalign.rewards.table import SCORERS, check_scorers, together

logger = logging.getLogger(__name__)
MANY_TIES = 0.5  # of the prompts; more are worth a warning
HOW = ("images_per_prompt", "num_inference_steps", "guidance_scale", "resolution", "max_sequence_length", "seed", "mixed_precision")
WRITES = ("rewriter", "max_new_tokens", "sentence_model")
WHAT = ("revision", "variant", "pretrained_vae_model_name_or_path", "denoiser", "base_lora")


def generate(config: GenerateConfig, prompts: Sequence[str], inputs: Sequence[bytes] = ()) -> Table | None:
    """Draw, score and rank images to `prompts`, and return the table; None in all processes of a launch but the first.

    Each process takes its share of the parts; the first one puts them together and removes them. Candidates lie in the order they
    were drawn in, with all scores, the `rank` (1 the best; equal ones share it), the model and the seed. A prompt with an image that a
    ranking scorer cannot judge is left out, and listed in the manifest; a warning tells where most prompts have images that all tie.

    Args:
        config: the model, how it draws, and the scorers that rank.
        prompts: P prompts, equal ones once; the table has P records of K = `images_per_prompt` candidates.
        inputs: of an edit model, the file of the input picture that each prompt is drawn from, which the records keep.

    Raises ConfigError for wrong settings, and for parts of other settings without `overwrite`; TableError where a table lies in
    `output_dir` already, or no prompt is left.

    Example:
        >>> scorers = [{"taste": {"name": "high"}}]
        >>> generate(GenerateConfig(output_dir="ranked", scorers=scorers), ["a red star"])  # doctest: +SKIP
    """
    check(config, prompts, inputs)
    torch.set_flush_denormal(True)
    settings = _by_model(config)
    drawings = [_drawings(one, prompts, inputs) for one in settings]
    whole = _whole(config, drawings[0])
    state = process_state()
    share = range(0) if whole else range(state.process_index, len(drawings[0]), state.num_processes)
    device = torch.device(state.device or "cpu")
    rewriter, longest = config.rewriter, config.max_new_tokens
    writes = None if rewriter is None else lambda: Writing.open(rewriter, longest, device)
    for one, side in zip(settings, drawings, strict=True):
        draw_shards(side, share, functools.partial(_pipeline, one, device, bool(inputs)), writes)
    for spec in config.scorers:  # one is in memory at a time
        score_drawings(drawings, share, spec, str(device))
    state.wait_for_everyone()
    if not state.is_main_process:
        return None
    table = read_table(config.output_dir) if whole else _merge(config, drawings, device)
    for side in drawings:
        shutil.rmtree(side.folder, ignore_errors=whole)
    return table


def check(config: GenerateConfig, prompts: Sequence[str], inputs: Sequence[bytes] = ()) -> None:
    """Check the settings before anything is loaded. Raises ConfigError for wrong ones."""
    if not prompts:
        raise ConfigError("there is no prompt to draw; give --prompts, or --dataset_name")
    if not 2 <= config.images_per_prompt <= 16:
        raise ConfigError(f"`images_per_prompt` is {config.images_per_prompt}; expected 2 to 16, for a preference compares images")
    if not config.scorers and config.other_model is None:
        raise ConfigError(f"`scorers` is empty, and they rank the images. Known: {', '.join(sorted(SCORERS))}")
    check_scorers(config.scorers, config.rank_by)
    if not inputs and not Run.is_in(config.pretrained_model_name_or_path):
        refuse_prompts_alone(config.pretrained_model_name_or_path)
    _check_rewriter(config, inputs)
    _check_other(config)
    if config.min_margin < 0.0:
        raise ConfigError(f"`min_margin` is {config.min_margin}; expected zero or more")
    if Run.is_in(config.pretrained_model_name_or_path):
        run = Run.open(config.pretrained_model_name_or_path, expects="image")
        if run.personal:
            raise ConfigError(f"{run.folder}: a run of {run.method} that draws for a user; expected one that draws to prompts alone")
        drawn_as(run, inputs=bool(inputs))
        for name in WHAT:
            if getattr(config, name):
                raise ConfigError(f"`{name}` is of a model, and {run.folder} is a finished run, which has its own; leave it out")


def _check_rewriter(config: GenerateConfig, inputs: Sequence[bytes]) -> None:
    """Raise ConfigError or CheckpointError for a rewriter that is no language model, and for flags of one where there is none."""
    if config.rewriter is None:
        if config.sentence_model is not None:
            raise ConfigError("`sentence_model` measures rewrites, and there is no `rewriter`; give one, or leave it out")
        return
    if inputs:
        raise ConfigError("`rewriter` writes prompts, and an edit model draws from a picture, too; leave it out")
    if config.max_new_tokens < 1:
        raise ConfigError(f"`max_new_tokens` is {config.max_new_tokens}; expected one or more")
    if config.sentence_model is not None and is_local(config.sentence_model) and not Path(config.sentence_model).is_dir():
        raise ConfigError(f"`sentence_model` is {config.sentence_model}, and there is no such folder; expected one, or a hub id")
    if Run.is_in(config.rewriter):
        Run.open(config.rewriter, expects="text")
    elif is_local(resolve(config.rewriter)):
        check_language_model(config.rewriter)


def _check_other(config: GenerateConfig) -> None:
    """Raise ConfigError for a second model that is none, or that cannot stand beside the first."""
    if config.other_model is None:
        return
    if config.rewriter is not None:
        raise ConfigError("`rewriter` makes a table of texts, and `other_model` one of two models' pictures; leave one out")
    if odd := [spec for spec in config.scorers if together(spec)]:
        raise ConfigError(f"`other_model`: {odd[0]} scores pictures beside each other; those of two models are scored apart: leave it out")
    names = [_called(one.pretrained_model_name_or_path) for one in _by_model(config)]
    if names[0] == names[1]:
        raise ConfigError(f"both models are called {names[0]}, by which their pictures are told apart; rename a folder")
    if not Run.is_in(config.other_model):
        check_folder(resolve(config.other_model))
        refuse_prompts_alone(config.other_model)
    elif (run := Run.open(config.other_model, expects="image")).personal:
        raise ConfigError(f"{run.folder}: a run of {run.method} that draws for a user; expected one that draws to prompts alone")


def _by_model(config: GenerateConfig) -> list[GenerateConfig]:
    """Return the settings of each model that draws: the first, and a second with none of the settings that are of the first alone."""
    if config.other_model is None:
        return [config]
    alone = {name: [] if name == "base_lora" else None for name in WHAT}
    return [config, replace(config, pretrained_model_name_or_path=config.other_model, **alone)]


def _called(name: str) -> str:
    return Path(name).resolve().name if Path(name).is_dir() else name


def _drawings(config: GenerateConfig, prompts: Sequence[str], inputs: Sequence[bytes]) -> Drawings:
    """Return where the images and scores lie until the table is whole."""
    prompts, inputs = distinct(prompts, inputs)
    name, path = config.pretrained_model_name_or_path, Path(config.output_dir).resolve()
    further = ("resolution", "max_sequence_length", "mixed_precision", *WHAT)
    written = {} if config.rewriter is None else {"rewriter": stamped(config.rewriter), "max_new_tokens": config.max_new_tokens}
    loras = {"base_lora": [BaseLora.of(text).facts() for text in config.base_lora]}
    second = name == config.other_model
    return Drawings(
        folder=path.with_name(f"{path.name}.{'other-' if second else ''}parts"),
        prompts=prompts,
        inputs=inputs,
        images_per_prompt=config.images_per_prompt,
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
        seed=config.seed,
        model=_called(name),
        facts={option: getattr(config, option) for option in further} | loras | stamped(name) | written,
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
    wanted = (_settings(config), config.scorers, len(drawings.prompts))
    same = (made.get("generated"), [about["spec"] for about in made.get("scorers", ())], count) == wanted
    if same and drawings.folder.is_dir() and set(table.column("prompt")) <= set(drawings.prompts):
        return True
    raise TableError(f"{config.output_dir} exists already; choose another folder, or overwrite it with --overwrite")


def _settings(config: GenerateConfig) -> dict[str, Any]:
    """Return the settings that a table was made with, for its manifest."""
    named = (*HOW, *WHAT, *WRITES, "pretrained_model_name_or_path", "other_model", "rank_by", "min_margin")
    return {name: getattr(config, name) for name in named}


def _pipeline(config: GenerateConfig, device: torch.device, inputs: bool) -> tuple[Any, dict[str, Any]]:
    """Return the pipeline that draws, and the arguments of `draw` for size and prompt length."""
    name = config.pretrained_model_name_or_path
    shape = {option: getattr(config, option) for option in ("resolution", "max_sequence_length") if getattr(config, option) is not None}
    if Run.is_in(name):
        run = Run.open(name, expects="image")
        return load(name, dtype=DTYPES[config.mixed_precision or run.precision], device=device), drawn_as(run, inputs=inputs) | shape
    options: dict[str, Any] = {"revision": config.revision, "variant": config.variant, "vae": config.pretrained_vae_model_name_or_path}
    options |= {"denoiser": config.denoiser and Path(config.denoiser), "base_loras": [BaseLora.of(text) for text in config.base_lora]}
    return load_pipeline(name, **options, dtype=DTYPES[config.mixed_precision or "no"]).to(device), shape


def _side_by_side(tables: Sequence[tuple[dict[str, Any], np.ndarray]]) -> tuple[dict[str, Any], np.ndarray]:
    """Return what is said of a scorer, and its scores of every model's pictures beside each other."""
    return tables[0][0], np.concatenate([scores for _, scores in tables], axis=1)


def _merge(config: GenerateConfig, sides: Sequence[Drawings], device: torch.device) -> Table:
    """Write the table of all shards, ranked and filtered."""
    rejected, ties = list[dict[str, str]](), list[bool]()  # of each prompt, whether all its images share a rank
    scores = [_side_by_side([side.scored(spec) for side in sides]) for spec in config.scorers]
    names = [about["name"] for about, _ in scores]
    if len(set(names)) < len(names):
        raise ConfigError(f"`scorers`: two of them give a score of the same name, of {', '.join(names)}; leave one out")
    if config.rank_by is not None and config.rank_by not in names:
        raise ConfigError(f"`rank_by` is {config.rank_by!r}, and no scorer gives it.{did_you_mean(config.rank_by, names)}")

    encoder = config.sentence_model
    distance = None if encoder is None else SentenceDistance.from_pretrained(encoder, device)

    def kept() -> Iterator[Record]:
        for i, drawn in enumerate(zip(*(side.records() for side in sides), strict=True)):
            record = replace(drawn[0], candidates=tuple(candidate for own in drawn for candidate in own.candidates))
            if not scores:
                yield record
                continue
            scored = _with_scores(record, {about["name"]: values[i].tolist() for about, values in scores})
            left, reason = ranked(scored, names if config.rank_by is None else [config.rank_by], config.min_margin)
            if left is None:
                rejected.append({"where": record.source, "reason": f"{record.prompt!r}: {reason}"})
                continue
            if config.rewriter is not None:
                left = as_texts(left, config.rewriter, distance)
            if len(left.candidates) < 2:
                rejected.append({"where": record.source, "reason": f"{record.prompt!r}: all its rewrites are the same text"})
                continue
            ties.append(len({candidate.rank for candidate in left.candidates}) == 1)
            yield left

    scorers = [about | {"unjudged": int(np.isnan(values).sum())} for about, values in scores]
    about = {"generated": _settings(config), "scorers": scorers}
    table = write_table(config.output_dir, kept(), rejected=rejected, overwrite=config.overwrite, **about)
    _warn_of_ties(table, ties)
    return table


def _warn_of_ties(table: Table, ties: Sequence[bool]) -> None:
    """Warn where most prompts have images that score alike."""
    if sum(ties) > MANY_TIES * len(ties):
        logger.warning(
            "%s: all images of %d of %d prompts score alike, which teaches nothing; draw with more steps or another guidance, or rank by "
            "a scorer that tells them apart",
            table.path,
            sum(ties),
            len(ties),
        )


def _with_scores(record: Record, scores: Mapping[str, Sequence[float]]) -> Record:
    """Return the record with each candidate's scores; a candidate that a scorer could not judge has none of that name."""
    scored = [
        replace(candidate, scores={name: values[k] for name, values in scores.items() if not math.isnan(values[k])})
        for k, candidate in enumerate(record.candidates)
    ]
    return replace(record, candidates=tuple(scored))


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
    heights = standing(record, by)
    margin = max(heights) - min(heights)
    if margin < min_margin:
        return None, f"its best image is {margin:g} ahead of the worst, less than {min_margin:g}"
    ranks = [1.0 + sum(other > height for other in heights) for height in heights]
    return replace(record, candidates=tuple(replace(c, rank=r) for c, r in zip(record.candidates, ranks, strict=True))), ""
