"""Pictures for people to vote on: drawn by a model into a vote store, ahead of the voters."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import diffusers
import torch
import transformers

from diffalign.core.errors import ConfigError
from diffalign.core.runs import Run, model_name
from diffalign.data.pictures import encode_image
from diffalign.data.store import VoteStore
from diffalign.infer.load import load
from diffalign.infer.options import DrawVotesConfig
from diffalign.infer.sample import draw
from diffalign.infer.shards import drawn_as, seed_of
from diffalign.methods.edits import refuse_prompts_alone
from diffalign.models.adapter_files import encoders_in
from diffalign.models.adapters import scale_lora
from diffalign.models.backbones.table import component_of, load_pipeline

BATCH = 8  # prompts that are drawn at once
POLL = 1.0  # seconds between looks at the store while there are pairs enough


@dataclass(frozen=True, slots=True)
class Painter:
    """A model as it draws: a pipeline, further arguments of `draw`, and what sets its adapter's weight before."""

    name: str
    pipe: Any
    options: Mapping[str, Any]
    prepare: Callable[[], None] = lambda: None

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], config: DrawVotesConfig) -> list[bytes]:
        """Return an encoded picture for each prompt and seed."""
        self.prepare()
        settings = {"num_inference_steps": config.num_inference_steps, "guidance_scale": config.guidance_scale, **self.options}
        return [encode_image(image) for image in draw(self.pipe, prompts, seeds, **settings, label=f"draw {self.name}")]


def draw_votes(config: DrawVotesConfig, prompts: Sequence[str]) -> int:
    """Fill the store with unseen pairs, and return how many pictures were drawn. A kill loses the batch in hand; a new call goes on.

    Raises ConfigError for settings that cannot be meant, and where all models draw the same pictures, which make no pairs.
    """
    if not prompts:
        raise ConfigError("there is no prompt to draw; give --prompts")
    models = len(config.pretrained_model_name_or_path) * max(1, len(config.lora_scales))
    if (1 if config.same_seed else config.images_per_prompt) * models < 2 or config.ahead < 1:
        raise ConfigError("a vote compares two pictures of a prompt, of at least one pair; raise `images_per_prompt`, or `ahead`")
    torch.set_flush_denormal(True)
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.disable_progress_bar()  # of loading; the last line of a log says what is drawn
    device = "cuda" if torch.cuda.is_available() else "cpu"
    painters = [painter for path in config.pretrained_model_name_or_path for painter in open_painters(path, config.lora_scales, device)]
    parent, drawn, idle = os.getppid(), 0, 0
    parts = [prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH)]
    turns = itertools.cycle(parts)
    with VoteStore(config.dataset_name) as store:
        while True:
            if store.unseen() >= config.ahead:
                if not config.follow or os.getppid() != parent:
                    return drawn
                time.sleep(POLL)
                continue
            pairs = store.pairs()
            drawn += _turn(store, painters, next(turns), config)
            idle = idle + 1 if store.pairs() == pairs else 0
            if idle > len(parts):
                raise ConfigError(f"{', '.join(painter.name for painter in painters)}: all draw the same pictures, so there is no pair")


def _turn(store: VoteStore, painters: Sequence[Painter], prompts: Sequence[str], config: DrawVotesConfig) -> int:
    """Draw some prompts with every model, and add the pictures prompt by prompt; return how many."""
    counts = {painter.name: {prompt: store.count(prompt, painter.name) for prompt in prompts} for painter in painters}
    # Of pictures that are paired by seed, whoever has drawn less catches up.
    behind = {prompt: min(count[prompt] for count in counts.values()) for prompt in prompts}
    drawn = 0
    for painter in painters:
        numbers = {}
        for prompt in prompts:
            first = counts[painter.name][prompt]
            numbers[prompt] = range(first, (behind[prompt] if config.same_seed else first) + config.images_per_prompt)
        wanted = [(prompt, seed_of(config.seed, prompt, number)) for prompt in prompts for number in numbers[prompt]]
        images = iter(painter.draw([prompt for prompt, _ in wanted], [seed for _, seed in wanted], config))
        for prompt in prompts:
            seeds = [seed_of(config.seed, prompt, number) for number in numbers[prompt]]
            part = list(itertools.islice(images, len(seeds)))
            drawn += store.add_pictures(prompt, part, model=painter.name, seeds=seeds, same_seed=config.same_seed)
    return drawn


def open_painters(path: str, scales: Sequence[float] = (), device: str = "cpu") -> list[Painter]:
    """Return a model or a finished run, once for each weight of its adapter. Raises ConfigError for a run that does not draw to prompts."""
    name = model_name(path)
    if not Run.is_in(path):
        refuse_prompts_alone(path)
        return [Painter(name, load_pipeline(path).to(device), {})]
    run = Run.open(path, expects="image")
    if run.personal:
        raise ConfigError(f"{path}: a run of {run.method} draws for a user; expected one that draws to prompts alone")
    if scales and (run.tuning != "lora" or run.steers):
        raise ConfigError(f"{path}: `lora_scales` weighs a LoRA in the whole network; this run of {run.method} has trained {run.tuning}")
    options, pipe = drawn_as(run), load(path, device=device)
    if not scales:
        return [Painter(name, pipe, options)]
    networks = [getattr(pipe, part) for part in (component_of(pipe), *encoders_in(run.folder))]

    def weighed(scale: float) -> None:
        for network in networks:
            scale_lora(network, scale)

    return [Painter(model_name(path, scale), pipe, options, partial(weighed, scale)) for scale in scales]
