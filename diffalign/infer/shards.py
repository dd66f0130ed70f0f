"""Images to prompts, and their scores, in parts that survive a kill.

Parts are drawn, and scored, in the same batches whoever does it: one process or several, at once or after a kill, end in the same files.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from diffalign.core.errors import ConfigError
from diffalign.core.files import write
from diffalign.core.runs import RUN, Run
from diffalign.core.specs import Spec, single
from diffalign.data.cache import fingerprint
from diffalign.data.records import Candidate, Record, decode_image, encode_image
from diffalign.data.table import is_table, read_table, write_table
from diffalign.infer.sample import draw
from diffalign.models.backbones.folders import resolve
from diffalign.rewards.score_table import stamps
from diffalign.rewards.table import load_scorer

logger = logging.getLogger(__name__)
PART = 8  # prompts in a part
ABOUT = ("name", "scale", "licence", "max_tokens", "revision")  # what is kept of a scorer


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Prompts in parts, and the files of each in `folder`: a table of one model's images, and a file of their scores by every scorer."""

    folder: Path
    prompts: tuple[str, ...]
    images_per_prompt: int
    num_inference_steps: int
    guidance_scale: float
    seed: int
    model: str  # what tables call the model
    facts: Mapping[str, Any]  # what else decides what its images look like
    command: str  # what tables name as the images' source
    overwrite: bool  # draw anew what was drawn with other settings, instead of raising ConfigError

    def __len__(self) -> int:
        return math.ceil(len(self.prompts) / PART)

    def of(self, part: int) -> tuple[str, ...]:
        """Return the prompts of a part."""
        return self.prompts[part * PART : (part + 1) * PART]

    def images(self, part: int) -> Path:
        """Return the folder of a part's table."""
        return self.folder / f"{part:05d}"

    def scores(self, part: int, spec: Spec) -> Path:
        """Return the file of a part's scores by one scorer."""
        name, constants = single("scorer", spec)
        facts = {"name": name, "constants": dict(constants), "files": stamps(constants)}
        return self.folder / f"{part:05d}.{fingerprint(facts)[:16]}.json"

    def made_with(self, part: int) -> dict[str, Any]:
        """Return what decides what the images of a part look like."""
        how = {name: getattr(self, name) for name in ("images_per_prompt", "num_inference_steps", "guidance_scale", "seed")}
        return how | dict(self.facts) | {"prompts": list(self.of(part))}

    def drawn(self, part: int) -> bool:
        """Return whether a part's images are there. Raises ConfigError if they were drawn with other settings, unless `overwrite`."""
        if not is_table(self.images(part)):
            return False
        found, wanted = read_table(self.images(part)).manifest["made_with"], self.made_with(part)
        if found == wanted:
            return True
        other = next(name for name in (*wanted, *found) if found.get(name, ...) != wanted.get(name, ...))
        if not self.overwrite:
            raise ConfigError(
                f"{self.images(part)}: images of an unfinished run with another `{other}`; go on with its settings, draw them anew with "
                "--overwrite, or choose another output_dir"
            )
        logger.info("%s: images drawn with another `%s` are drawn anew", self.images(part), other)
        return False

    def records(self) -> Iterator[Record]:
        """Yield every prompt with its images, all parts being drawn."""
        for part in range(len(self)):
            yield from read_table(self.images(part))

    def scored(self, spec: Spec) -> tuple[dict[str, Any], np.ndarray]:
        """Return what is known of a scorer, and its scores (prompts, images_per_prompt), NaN for what it could not judge."""
        found = [json.loads(self.scores(part, spec).read_text(encoding="utf-8")) for part in range(len(self))]
        return found[0]["scorer"], np.array([row for own in found for row in own["scores"]], dtype=np.float64)  # None becomes NaN


def seed_of(seed: int, prompt: str, number: int) -> int:
    """Return the seed of image `number` of a prompt, below 2^31: the same whatever the other prompts are, and however many images."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{number}:{prompt}".encode()).digest()[:4], "big") >> 1


def stamped(name: str) -> dict[str, Any]:
    """Return a model's path or hub id, and of a folder a hash of the sizes and times of its weights."""
    weights = Path(resolve(name))
    files = sorted([*weights.rglob("*.safetensors"), *weights.glob(RUN)]) if weights.is_dir() else []
    stats = [(str(file.relative_to(weights)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return {"pretrained_model_name_or_path": str(weights), "weights": fingerprint({"files": stats})}


def drawn_as(run: Run) -> dict[str, Any]:
    """Return the arguments of `draw` that pictures of a run need: size and prompt length as in training, real guidance for an NPO run."""
    shape = {name: run.facts.get(name) for name in ("resolution", "max_sequence_length")}
    return {**shape, "true_cfg": run.steers}


def draw_parts(parts: Parts, own: Sequence[int], opened: Callable[[], tuple[Any, Mapping[str, Any]]]) -> None:
    """Draw those parts of `own` that are not there yet, with what `opened` returns: a pipeline, and further arguments of `draw`."""
    missing = [part for part in own if not parts.drawn(part)]
    if not missing:
        return
    count = parts.images_per_prompt
    pipe, told = opened()
    told = {"num_inference_steps": parts.num_inference_steps, "guidance_scale": parts.guidance_scale, **told}
    for part in missing:
        for stale in parts.folder.glob(f"{part:05d}.*.json"):
            stale.unlink()
        shutil.rmtree(parts.images(part), ignore_errors=True)  # of other settings, or what a kill left of it
        prompts = [prompt for prompt in parts.of(part) for _ in range(count)]
        seeds = [seed_of(parts.seed, prompt, number) for prompt in parts.of(part) for number in range(count)]
        images = draw(pipe, prompts, seeds, **told, label=f"draw {parts.model}, part {part + 1} of {len(parts)}")
        records = [
            _record(parts, part * PART + i, prompt, seeds[i * count :][:count], images[i * count :][:count])
            for i, prompt in enumerate(parts.of(part))
        ]
        write_table(parts.images(part), records, made_with=parts.made_with(part))


def _record(parts: Parts, index: int, prompt: str, seeds: Sequence[int], images: Sequence[Any]) -> Record:
    """Return the images of a prompt, not scored yet."""
    candidates = [Candidate(image=encode_image(x), model=parts.model, uid=f"{index:06d}-{k}") for k, x in enumerate(images)]
    meta = {name: str(getattr(parts, name)) for name in ("num_inference_steps", "guidance_scale")}
    meta |= {"seeds": " ".join(map(str, seeds))}
    return Record(f"{index:06d}", prompt, tuple(candidates), source=f"prompt {index} of `{parts.command}`", meta=meta)


def score_parts(parts: Sequence[Parts], own: Sequence[int], spec: Spec, device: str) -> None:
    """Score those parts of `own`, of every model in `parts`, that are not scored yet; the scorer has left the memory afterwards."""
    missing = [(model, part) for model in parts for part in own if not model.scores(part, spec).is_file()]
    if not missing:
        return
    gc.collect()  # so that what was in memory before has left it
    scorer = load_scorer(spec, device=device)
    for model, part in tqdm(missing, desc=f"score {scorer.name}", unit=" parts", disable=None):
        records = list(read_table(model.images(part)))
        shown = [(decode_image(c.image or b"", r.source), r.prompt) for r in records for c in r.candidates]
        values = scorer([image for image, _ in shown], [prompt for _, prompt in shown])
        rows = values.reshape(len(records), model.images_per_prompt).tolist()
        about = {name: getattr(scorer, name) for name in ABOUT} | {"spec": spec}
        facts = {"scorer": about, "scores": [[value if math.isfinite(value) else None for value in row] for row in rows]}
        write({model.scores(part, spec): json.dumps(facts)})
