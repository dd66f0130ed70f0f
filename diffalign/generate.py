"""Preference tables of a model's own images: K a prompt, drawn, scored, ranked; in parts, so that a killed run goes on where it was.

Parts are drawn, and scored, in the same batches whoever does it: one process or several, at once or after a kill, end in one table.
"""

from __future__ import annotations

import gc
import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from diffalign.api import process_state
from diffalign.backbones.folders import resolve
from diffalign.backbones.table import load_pipeline
from diffalign.build import DTYPES
from diffalign.data.cache import fingerprint
from diffalign.data.records import Candidate, Record, decode_image, encode_image
from diffalign.data.table import Table, is_table, read_table, write_table
from diffalign.data.transforms.scores import share_beaten
from diffalign.errors import ConfigError, TableError, did_you_mean
from diffalign.evaluate import drawn_as
from diffalign.infer.load import load, run_facts
from diffalign.infer.sample import draw
from diffalign.options_pairs import GenerateConfig
from diffalign.result import RUN
from diffalign.rewards.table import SCORERS, load_scorer
from diffalign.specs import Spec, bind, single

PART = 8  # prompts in a part
HOW = ("images_per_prompt", "num_inference_steps", "guidance_scale", "resolution", "max_sequence_length", "seed", "mixed_precision")
ABOUT = ("name", "scale", "licence", "max_tokens", "revision")  # what a manifest says of a scorer
WHAT = ("revision", "variant", "pretrained_vae_model_name_or_path")


def generate(config: GenerateConfig, prompts: Sequence[str]) -> Table | None:
    """Draw, score and rank images to `prompts`, and return the table; None in all processes of a launch but the first.

    Each process takes its share of the parts; the first one puts them together and removes them. Candidates lie in the order they
    were drawn in, with all scores, the `rank` (1 the best; equal ones share it), the model and the seed.
    Prompts with an image that a ranking scorer cannot judge are left out, and listed in the manifest.
    Raises ConfigError for settings that cannot be meant, and for parts of other settings without `overwrite`; TableError where a table
    lies in `output_dir` already, or no prompt is left.
    """
    _check(config, prompts)
    torch.set_flush_denormal(True)
    parts = Parts(config, tuple(dict.fromkeys(prompts)))
    state = process_state()
    own = range(state.process_index, len(parts), state.num_processes)
    device = torch.device(state.device or "cpu")
    _draw(parts, own, device)
    _score(parts, own, str(device))
    state.wait_for_everyone()
    if not state.is_main_process:
        return None
    table = _merge(parts)
    shutil.rmtree(parts.folder)
    return table


def _check(config: GenerateConfig, prompts: Sequence[str]) -> None:
    """Raise the error that the settings deserve, before anything is loaded."""
    if not prompts:
        raise ConfigError("there is no prompt to draw; give --prompts, or --dataset_name")
    if not 2 <= config.images_per_prompt <= 16:
        raise ConfigError(f"`images_per_prompt` is {config.images_per_prompt}; expected 2 to 16, for a preference compares images")
    if not config.scorers:
        raise ConfigError(f"`scorers` is empty, and they rank the images. Known: {', '.join(sorted(SCORERS))}")
    for spec in config.scorers:
        bind("scorer", SCORERS, spec, device="cpu")
    if config.min_margin < 0.0:
        raise ConfigError(f"`min_margin` is {config.min_margin}; expected zero or more")
    if is_table(config.output_dir) and not config.overwrite:
        raise TableError(f"{config.output_dir} exists already; choose another folder, or overwrite it with --overwrite")
    run = Path(config.pretrained_model_name_or_path)
    if (run / RUN).is_file():
        facts = run_facts(run)
        if facts.get("kind") == "text" or facts.get("inference") == "user":
            what = "answers with texts" if facts.get("kind") == "text" else "draws for a user"
            raise ConfigError(f"{run}: a run of {facts['method']} that {what}; expected a model, or a run, that draws to prompts alone")
        for name in WHAT:
            if getattr(config, name) is not None:
                raise ConfigError(f"`{name}` is of a model, and {run} is a finished run, which knows its own; leave it out")


@dataclass(frozen=True)
class Parts:
    """Prompts in parts, and the files of each: a table of the images, and a file with their scores for every scorer."""

    config: GenerateConfig
    prompts: tuple[str, ...]

    def __len__(self) -> int:
        return math.ceil(len(self.prompts) / PART)

    @property
    def folder(self) -> Path:
        """Return where the parts lie."""
        path = Path(self.config.output_dir).resolve()
        return path.with_name(f"{path.name}.parts")

    def of(self, part: int) -> tuple[str, ...]:
        """Return the prompts of a part."""
        return self.prompts[part * PART : (part + 1) * PART]

    def images(self, part: int) -> Path:
        """Return the folder of a part's table."""
        return self.folder / f"{part:05d}"

    def scores(self, part: int, spec: Spec) -> Path:
        """Return the file of a part's scores by one scorer."""
        name, constants = single("scorer", spec)
        return self.folder / f"{part:05d}.{fingerprint({'name': name, 'constants': dict(constants)})[:16]}.json"

    def made_with(self, part: int) -> dict[str, Any]:
        """Return what decides what the images of a part look like."""
        config = self.config
        weights = Path(resolve(config.pretrained_model_name_or_path))
        files = sorted([*weights.rglob("*.safetensors"), *weights.glob(RUN)]) if weights.is_dir() else []
        stats = [(str(file.relative_to(weights)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        facts = {name: getattr(config, name) for name in (*HOW, *WHAT)} | {"prompts": list(self.of(part))}
        return facts | {"pretrained_model_name_or_path": str(weights), "weights": fingerprint({"files": stats})}

    def drawn(self, part: int) -> bool:
        """Return whether a part's images are there. Raises ConfigError if they were drawn with other settings, unless `overwrite`."""
        if not is_table(self.images(part)):
            return False
        found, wanted = read_table(self.images(part)).manifest["made_with"], self.made_with(part)
        if found == wanted:
            return True
        if not self.config.overwrite:
            other = next(name for name in wanted if found.get(name) != wanted[name])
            raise ConfigError(
                f"{self.images(part)}: images of an unfinished run with another `{other}`; go on with its settings, draw them anew with "
                "--overwrite, or choose another output_dir"
            )
        return False


def seed_of(seed: int, prompt: str, number: int) -> int:
    """Return the seed of image `number` of a prompt, below 2^31: the same whatever the other prompts are, and however many images."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{number}:{prompt}".encode()).digest()[:4], "big") >> 1


def _draw(parts: Parts, own: Sequence[int], device: torch.device) -> None:
    """Draw those parts of `own` that are not there yet."""
    missing = [part for part in own if not parts.drawn(part)]
    if not missing:
        return
    config, count = parts.config, parts.config.images_per_prompt
    pipe, told = _pipeline(config, device)
    told |= {"num_inference_steps": config.num_inference_steps, "guidance_scale": config.guidance_scale}
    for part in missing:
        for stale in parts.folder.glob(f"{part:05d}.*.json"):
            stale.unlink()
        prompts = [prompt for prompt in parts.of(part) for _ in range(count)]
        seeds = [seed_of(config.seed, prompt, number) for prompt in parts.of(part) for number in range(count)]
        images = draw(pipe, prompts, seeds, **told, label=f"draw part {part + 1} of {len(parts)}")
        records = [
            _record(config, part * PART + i, prompt, seeds[i * count :][:count], images[i * count :][:count])
            for i, prompt in enumerate(parts.of(part))
        ]
        write_table(parts.images(part), records, overwrite=True, made_with=parts.made_with(part))


def _pipeline(config: GenerateConfig, device: torch.device) -> tuple[Any, dict[str, Any]]:
    """Return the pipeline that draws, and what it is told of size and prompt length."""
    name = config.pretrained_model_name_or_path
    told = {option: getattr(config, option) for option in ("resolution", "max_sequence_length") if getattr(config, option) is not None}
    if (Path(name) / RUN).is_file():
        dtype = DTYPES[config.mixed_precision or run_facts(Path(name)).get("mixed_precision", "no")]
        return load(name, dtype=dtype, device=device), drawn_as(Path(name)) | told
    options: dict[str, Any] = {"revision": config.revision, "variant": config.variant, "vae": config.pretrained_vae_model_name_or_path}
    return load_pipeline(name, **options, dtype=DTYPES[config.mixed_precision or "no"]).to(device), told


def _record(config: GenerateConfig, index: int, prompt: str, seeds: Sequence[int], images: Sequence[Any]) -> Record:
    """Return the images of a prompt, not scored yet."""
    name = config.pretrained_model_name_or_path
    model = Path(name).resolve().name if Path(name).is_dir() else name
    candidates = [Candidate(image=encode_image(x), model=model, uid=f"{index:06d}-{k}") for k, x in enumerate(images)]
    meta = {name: str(getattr(config, name)) for name in ("num_inference_steps", "guidance_scale")}
    meta |= {"seeds": " ".join(map(str, seeds))}
    return Record(f"{index:06d}", prompt, tuple(candidates), source=f"prompt {index} of `pairs generate`", meta=meta)


def _score(parts: Parts, own: Sequence[int], device: str) -> None:
    """Score those parts of `own` that are not scored yet, with one scorer after another: one is in memory at a time."""
    for spec in parts.config.scorers:
        gc.collect()  # so that what was in memory before has left it
        missing = [part for part in own if not parts.scores(part, spec).is_file()]
        if missing:
            _score_with(spec, parts, missing, device)


def _score_with(spec: Spec, parts: Parts, missing: Sequence[int], device: str) -> None:
    scorer = load_scorer(spec, device=device)
    for part in tqdm(missing, desc=f"score {scorer.name}", unit=" parts", disable=None):
        records = list(read_table(parts.images(part)))
        shown = [(decode_image(c.image or b"", r.source), r.prompt) for r in records for c in r.candidates]
        values = scorer([image for image, _ in shown], [prompt for _, prompt in shown])
        rows = values.reshape(len(records), parts.config.images_per_prompt).tolist()
        about = {name: getattr(scorer, name) for name in ABOUT} | {"spec": spec}
        facts = {"scorer": about, "scores": [[value if math.isfinite(value) else None for value in row] for row in rows]}
        path = parts.scores(part, spec)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(facts), encoding="utf-8")
        temporary.replace(path)


def _merge(parts: Parts) -> Table:
    """Write the table of all parts, ranked and filtered."""
    config, rejected = parts.config, []
    found = [[json.loads(parts.scores(part, spec).read_text(encoding="utf-8")) for spec in config.scorers] for part in range(len(parts))]
    names = [facts["scorer"]["name"] for facts in found[0]]
    if len(set(names)) < len(names):
        raise ConfigError(f"`scorers`: two of them give a score of the same name, of {', '.join(names)}; leave one out")
    if config.rank_by is not None and config.rank_by not in names:
        raise ConfigError(f"`rank_by` is {config.rank_by!r}, and no scorer gives it.{did_you_mean(config.rank_by, names)}")

    def kept() -> Iterator[Record]:
        for part, scored in enumerate(found):
            for i, record in enumerate(read_table(parts.images(part))):
                known = _with_scores(record, dict(zip(names, (facts["scores"][i] for facts in scored), strict=True)))
                left, reason = ranked(known, names if config.rank_by is None else [config.rank_by], config.min_margin)
                if left is None:
                    rejected.append({"where": record.source, "reason": f"{record.prompt!r}: {reason}"})
                else:
                    yield left

    scorers = []
    for place, facts in enumerate(found[0]):
        values = [value for scored in found for row in scored[place]["scores"] for value in row]
        scorers.append(facts["scorer"] | {"unjudged": values.count(None)})
    settings = {name: getattr(config, name) for name in (*HOW, *WHAT, "pretrained_model_name_or_path", "rank_by", "min_margin")}
    return write_table(config.output_dir, kept(), rejected=rejected, overwrite=config.overwrite, generated=settings, scorers=scorers)


def _with_scores(record: Record, scores: Mapping[str, Sequence[float | None]]) -> Record:
    """Return the record with each candidate's scores; a candidate that a scorer could not judge has none of that name."""
    known = [
        replace(candidate, scores={name: value for name, values in scores.items() if (value := values[k]) is not None})
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
