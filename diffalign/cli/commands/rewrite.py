"""`diffalign rewrite`."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffalign.app.options import EMBEDDED_WRITER
from diffalign.core.errors import ConfigError, DiffalignError, shortened
from diffalign.core.runs import Run

if TYPE_CHECKING:
    from diffalign.infer.text.before_after import BeforeAfter

ABOUT = "see what a prompt writer makes of short prompts, before and after training"
HELP = """examples:
  diffalign rewrite --prompts "a star"                                    the embedded writer, drawn by the embedded model
  diffalign rewrite --output_dir outputs/writer --prompts "a cat" --pretrained_model_name_or_path runwayml/stable-diffusion-v1-5
in Python:
  from diffalign.infer.text.before_after import BeforeAfter
  BeforeAfter.open("outputs/writer", "assets/tiny-sd").versions("a star")
"""

MOST_IMAGES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class CONFIG:
    """Let a language model rewrite short prompts as it did before its training and as it does after, and draw the prompt and both
    rewrites at the same seeds."""

    output_dir: str = EMBEDDED_WRITER
    """Folder of a finished `diffalign train` run of a language model."""
    pretrained_model_name_or_path: str = "assets/tiny-sd"
    """What draws: a folder in diffusers layout, a hub id, or a finished run of images."""
    prompts: list[str] = field(default_factory=list)
    """Short prompts, files of them, or sets by name."""
    destination: str = "outputs/rewrites"
    """Folder for the pictures, PROMPT_WRITER_IMAGE.png, where prompts and images are counted from 0."""
    images_per_prompt: int = 4
    """Rewrites of each prompt by each writer, and their pictures."""
    draw: bool = True
    """Draw the pictures, and not only rewrite."""
    num_inference_steps: int = 25
    """Solver steps of every picture."""
    guidance_scale: float = 5.0
    """Guidance of every picture."""
    seed: int = 0
    """Rewrite i of a prompt is written, and its picture drawn, with seed + i."""
    follow: bool = False
    """Read further prompts from standard input, each a line {"prompt": "a star", "seed": 0}, and answer with a line of JSON, until it
    ends. The pictures of the next line take the place of those before."""


def run(config: CONFIG) -> int:
    """Print the rewrites of every prompt, and where their pictures lie."""
    from diffalign.data.prompts import prompts_to_draw
    from diffalign.models.backbones.folders import check_folder, resolve

    if not config.prompts and not config.follow:
        raise ConfigError("there is no prompt to rewrite; give --prompts")
    if not 1 <= config.images_per_prompt <= MOST_IMAGES:
        raise ConfigError(f"`images_per_prompt` is {config.images_per_prompt}; expected 1 to {MOST_IMAGES}")
    prompts = prompts_to_draw(config.prompts) if config.prompts else []
    folder, model = resolve(config.output_dir), config.pretrained_model_name_or_path
    Run.open(folder, expects="text")
    if config.draw and not Run.is_in(model):
        check_folder(resolve(model))
    import torch

    from diffalign.infer.text.before_after import BeforeAfter  # it takes seconds to import

    writers = BeforeAfter.open(
        folder,
        model if config.draw else None,
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
    for number, prompt in enumerate(prompts):
        for name, version in _versions(writers, config, prompt, config.seed, number).items():
            rows = itertools.zip_longest(version["texts"], version["images"], fillvalue="")
            print("\n".join(f"{name:7}  {' '.join(text.split())}  {file}".rstrip() for text, file in rows), flush=True)
    if config.follow:
        for line in sys.stdin:
            print(json.dumps(_answer(writers, config, line)), flush=True)
    return 0


def _versions(writers: BeforeAfter, config: CONFIG, prompt: str, seed: int, number: int = 0) -> dict[str, dict[str, Sequence[str]]]:
    """Return the texts of each version of a prompt and the files of their pictures, by writer."""
    folder, shown = Path(config.destination), {}
    folder.mkdir(parents=True, exist_ok=True)
    for version in writers.versions(prompt, seed=seed, images_per_prompt=config.images_per_prompt):
        files = [folder / f"{number}_{version.writer}_{i}.png" for i in range(len(version.images))]
        for file, image in zip(files, version.images, strict=True):
            image.save(file)
        shown[version.writer] = {"texts": version.texts, "images": [str(file) for file in files]}
    return shown


def _answer(writers: BeforeAfter, config: CONFIG, line: str) -> dict[str, Any]:
    """Return the versions of the prompt in a line of standard input, or why there are none."""
    try:
        request = json.loads(line)
        prompt, seed = str(request["prompt"]), int(request.get("seed", config.seed))
    except (ValueError, KeyError, TypeError, AttributeError):
        return {"error": f'the line is {shortened(repr(line))}; expected {{"prompt": "a star", "seed": 0}}'}
    try:
        return _versions(writers, config, prompt, seed)
    except DiffalignError as error:
        return {"error": str(error)}
