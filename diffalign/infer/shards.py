"""Pictures of prompts, and their scores, in shards that survive a kill.

A shard is drawn, and scored, in the same batches whoever does it: one process or several, at once or after a kill, end in the same files.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from diffalign.core.errors import ConfigError
from diffalign.core.progress import progress
from diffalign.core.runs import RUN, Run
from diffalign.core.specs import Spec
from diffalign.data.cache import fingerprint
from diffalign.data.pictures import decode_image, encode_image
from diffalign.data.records import Candidate, Record
from diffalign.data.table import is_table, read_table, write_table
from diffalign.infer.sample import draw
from diffalign.infer.text.rewrites import Writing
from diffalign.methods.edits import refuse_prompts_alone
from diffalign.models.backbones.folders import resolve
from diffalign.rewards.shards import Shard, read_shards, score_shards, spec_key

logger = logging.getLogger(__name__)
PART = 8  # prompts drawn together, whose batches are the same however they lie in shards
MOST_SHARDS, MOST_IMAGES = 1024, 256  # more shards are made larger, up to so many pictures in each


@dataclass(frozen=True, kw_only=True)
class Drawings:
    """One model's pictures of some prompts, in shards in `folder`: a table of the pictures, and a file of their scores by every scorer."""

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
    inputs: tuple[bytes, ...] = ()  # of an edit model: the file of the picture that each prompt is drawn from

    def __len__(self) -> int:
        return math.ceil(len(self.prompts) / self.size)

    @functools.cached_property
    def size(self) -> int:
        """Return the number of prompts in a shard."""
        wanted, room = math.ceil(len(self.prompts) / PART / MOST_SHARDS), MOST_IMAGES // (PART * self.images_per_prompt)
        return PART * max(1, min(wanted, room))

    def of(self, n: int) -> tuple[str, ...]:
        """Return the prompts of a shard."""
        return self.prompts[n * self.size : (n + 1) * self.size]

    def inputs_of(self, n: int) -> tuple[bytes | None, ...]:
        """Return the input pictures of a shard's prompts, None where there is none."""
        return self.inputs[n * self.size : (n + 1) * self.size] or (None,) * len(self.of(n))

    def images(self, n: int) -> Path:
        """Return the folder of a shard's table."""
        return self.folder / f"{n:05d}"

    def scores(self, n: int, spec: Spec) -> Path:
        """Return the file of a shard's scores by one scorer."""
        return self.folder / f"{n:05d}.{spec_key(spec)}.json"

    def made_with(self, n: int) -> dict[str, Any]:
        """Return what decides what the images of a part look like."""
        how = {name: getattr(self, name) for name in ("images_per_prompt", "num_inference_steps", "guidance_scale", "seed")}
        inputs = [hashlib.sha256(picture).hexdigest() for picture in self.inputs_of(n) if picture is not None]
        return how | dict(self.facts) | {"prompts": list(self.of(n))} | ({"inputs": inputs} if inputs else {})

    def drawn(self, n: int) -> bool:
        """Return whether a shard's images are there. Raises ConfigError if they were drawn with other settings, unless `overwrite`."""
        if not is_table(self.images(n)):
            return False
        earlier, wanted = read_table(self.images(n)).manifest["made_with"], self.made_with(n)
        if earlier == wanted:
            return True
        other = next(name for name in (*wanted, *earlier) if earlier.get(name, ...) != wanted.get(name, ...))
        if not self.overwrite:
            raise ConfigError(
                f"{self.images(n)}: images of an unfinished run with another `{other}`; go on with its settings, draw them anew with "
                "--overwrite, or choose another output_dir"
            )
        logger.info("%s: images drawn with another `%s` are drawn anew", self.images(n), other)
        return False

    def records(self) -> Iterator[Record]:
        """Yield every prompt with its images, all shards being drawn."""
        for n in range(len(self)):
            yield from read_table(self.images(n))

    def scored(self, spec: Spec) -> tuple[dict[str, Any], np.ndarray]:
        """Return name, scale and licence of a scorer, and its scores (prompts, images_per_prompt), NaN for what it cannot judge."""
        about, rows = read_shards([self.scores(n, spec) for n in range(len(self))])
        return about, np.array(rows, dtype=np.float64)  # None becomes NaN


def distinct(prompts: Sequence[str], inputs: Sequence[bytes] = ()) -> tuple[tuple[str, ...], tuple[bytes, ...]]:
    """Return the prompts, and the input picture of each where there are some; equal ones once.

    >>> distinct(["a", "b", "a"])
    (('a', 'b'), ())
    """
    pairs = dict.fromkeys(zip(prompts, inputs or [None] * len(prompts), strict=True))
    return tuple(prompt for prompt, _ in pairs), tuple(picture for _, picture in pairs if picture is not None)


def seed_of(seed: int, prompt: str, number: int) -> int:
    """Return the seed of image `number` of a prompt, below 2^31: the same whatever the other prompts are, and however many images."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{number}:{prompt}".encode()).digest()[:4], "big") >> 1


def stamped(name: str) -> dict[str, Any]:
    """Return a model's path or hub id, and of a folder a hash of the sizes and times of its weights."""
    weights = Path(resolve(name))
    files = sorted([*weights.rglob("*.safetensors"), *weights.glob(RUN)]) if weights.is_dir() else []
    stats = [(str(file.relative_to(weights)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return {"pretrained_model_name_or_path": str(weights), "weights": fingerprint({"files": stats})}


def drawn_as(run: Run, *, inputs: bool = False) -> dict[str, Any]:
    """Return the arguments of `draw` that pictures of a run need: size and prompt length as in training, real guidance for an NPO run.

    Raises ConfigError for a run of a ControlNet, and of an edit model without `inputs`, which do not draw to prompts alone.
    """
    if not inputs:
        refuse_prompts_alone(run.base)
    if run.conditioned:
        raise ConfigError(
            f"{run.folder}: a run of a ControlNet draws to conditioning images, and here are prompts alone; use `diffalign.load(...)` with "
            "`image=`, or its folder `controlnet` in another program"
        )
    shape = {name: run.facts.get(name) for name in ("resolution", "max_sequence_length")}
    return {**shape, "true_cfg": run.steers}


def draw_shards(
    drawings: Drawings,
    numbers: Sequence[int],
    opened: Callable[[], tuple[Any, Mapping[str, Any]]],
    writes: Callable[[], Writing] | None = None,
) -> None:
    """Draw the shards of these numbers that are not there yet; `opened` returns the pipeline, and further arguments of `draw`.

    With `writes`, which returns a prompt writer, every picture of a prompt is drawn from a rewrite of its own, and all from the same noise:
    what differs is the words alone.
    """
    missing = [n for n in numbers if not drawings.drawn(n)]
    if not missing:
        return
    count, writing = drawings.images_per_prompt, writes and writes()
    pipe, arguments = opened()
    arguments = {"num_inference_steps": drawings.num_inference_steps, "guidance_scale": drawings.guidance_scale, **arguments}
    total = count * sum(len(drawings.of(n)) for n in missing)
    with progress(total=total, desc=f"draw {drawings.model}", unit="images") as bar:
        for n in missing:
            _draw_shard(drawings, n, functools.partial(draw, pipe, **arguments, bar=bar), writing)


def _draw_shard(drawings: Drawings, n: int, drawer: Callable[..., Sequence[Any]], writing: Writing | None) -> None:
    """Draw a shard and write its table, a few prompts at a time; `drawer` is `draw` but for prompts, seeds and input pictures."""
    for stale in drawings.folder.glob(f"{n:05d}.*.json"):
        stale.unlink()
    shutil.rmtree(drawings.images(n), ignore_errors=True)  # of other settings, or what a kill left of it
    prompts, inputs = drawings.of(n), drawings.inputs_of(n)
    parts = (
        _draw_part(drawings, n * drawings.size + start, prompts[start : start + PART], inputs[start : start + PART], drawer, writing)
        for start in range(0, len(prompts), PART)
    )
    write_table(drawings.images(n), itertools.chain.from_iterable(parts), made_with=drawings.made_with(n))


def _draw_part(
    drawings: Drawings,
    first: int,
    names: Sequence[str],
    inputs: Sequence[bytes | None],
    drawer: Callable[..., Sequence[Any]],
    writing: Writing | None,
) -> list[Record]:
    """Return the pictures of a few prompts, of which `first` is the number of the first one."""
    count = drawings.images_per_prompt
    prompts = [prompt for prompt in names for _ in range(count)]
    seeds = [seed_of(drawings.seed, prompt, number) for prompt in names for number in range(count)]
    texts = prompts if writing is None else writing(prompts, seeds)
    noises = seeds if writing is None else [seed_of(drawings.seed, prompt, 0) for prompt in prompts]
    pictures = [decode_image(picture, "an input picture") for picture in inputs if picture is not None]
    images = drawer(texts, noises, **({"conditioning_images": [p for p in pictures for _ in range(count)]} if pictures else {}))
    records = []
    for i, (prompt, picture) in enumerate(zip(names, inputs, strict=True)):
        own = slice(i * count, (i + 1) * count)
        record = replace(_record(drawings, first + i, prompt, noises[own], images[own]), conditioning_image=picture)
        records.append(record if writing is None else writing.kept(record, texts[own]))
    return records


def _record(drawings: Drawings, index: int, prompt: str, seeds: Sequence[int], images: Sequence[Any]) -> Record:
    """Return the images of a prompt, not scored yet."""
    candidates = [Candidate(image=encode_image(x), model=drawings.model, uid=f"{index:06d}-{k}") for k, x in enumerate(images)]
    meta = {name: str(getattr(drawings, name)) for name in ("num_inference_steps", "guidance_scale")}
    meta |= {"seeds": " ".join(map(str, seeds))}
    return Record(f"{index:06d}", prompt, tuple(candidates), source=f"prompt {index} of `{drawings.command}`", meta=meta)


def compare_drawings(first: Drawings, second: Drawings, numbers: Sequence[int], spec: Spec, device: str) -> None:
    """Have a judge compare the shards of these numbers of two models' drawings, picture by picture, where it has not yet."""
    pair = [
        Shard(_verdicts(first, second, n, spec), functools.partial(_records, first, n), functools.partial(_records, second, n))
        for n in numbers
    ]
    score_shards(pair, spec, device)


def verdicts_on(first: Drawings, second: Drawings, spec: Spec) -> tuple[dict[str, Any], np.ndarray]:
    """Return what is known of a judge, and the chance (prompts, images_per_prompt) that the second model's picture is the better one."""
    about, rows = read_shards([_verdicts(first, second, n, spec) for n in range(len(first))])
    return about, np.array(rows, dtype=np.float64)


def _verdicts(first: Drawings, second: Drawings, n: int, spec: Spec) -> Path:
    """Return the file of a judge's verdicts on a shard of two models; others, where either draws otherwise."""
    key = spec_key(spec, first=first.made_with(n), second=second.made_with(n), models=[first.model, second.model])
    return first.folder / f"{n:05d}.against-{key}.json"


def score_drawings(drawings: Sequence[Drawings], numbers: Sequence[int], spec: Spec, device: str) -> None:
    """Score the shards of these numbers of every model's drawings, where they are not scored yet."""
    shards = [Shard(model.scores(n, spec), functools.partial(_records, model, n)) for model in drawings for n in numbers]
    score_shards(shards, spec, device)


def _records(drawings: Drawings, n: int) -> list[Record]:
    return list(read_table(drawings.images(n)))
