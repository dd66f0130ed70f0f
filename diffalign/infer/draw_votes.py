"""Pictures for people to vote on: drawn by a model into a vote store, ahead of the voters."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from diffalign.core.errors import ConfigError
from diffalign.core.runs import Run
from diffalign.data.pictures import encode_image
from diffalign.data.store import VoteStore
from diffalign.infer.load import load
from diffalign.infer.options import DrawVotesConfig
from diffalign.infer.sample import draw
from diffalign.infer.shards import drawn_as, seed_of
from diffalign.models.backbones.table import load_pipeline

BATCH = 8  # prompts that are drawn at once
POLL = 1.0  # seconds between looks at the store while there are pairs enough


def draw_votes(config: DrawVotesConfig, prompts: Sequence[str]) -> int:
    """Fill the store with unseen pairs, and return how many pictures were drawn. A kill loses the batch in hand; a new call goes on.

    Raises ConfigError for settings that cannot be meant.
    """
    if not prompts:
        raise ConfigError("there is no prompt to draw; give --prompts")
    if config.images_per_prompt * len(config.pretrained_model_name_or_path) < 2 or config.ahead < 1:
        raise ConfigError("a vote compares two pictures of a prompt, of at least one pair; raise `images_per_prompt`, or `ahead`")
    torch.set_flush_denormal(True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = {_name(path): _opened(path, device) for path in config.pretrained_model_name_or_path}
    parent, drawn = os.getppid(), 0
    turns = itertools.cycle([prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH)])
    with VoteStore(config.dataset_name) as store:
        while True:
            if store.unseen() >= config.ahead:
                if not config.follow or os.getppid() != parent:
                    return drawn
                time.sleep(POLL)
                continue
            drawn += _turn(store, models, next(turns), config)


def _turn(store: VoteStore, models: dict[str, tuple[Any, dict[str, Any]]], prompts: Sequence[str], config: DrawVotesConfig) -> int:
    """Draw some prompts with every model, and add the pictures prompt by prompt; return how many."""
    drawn = 0
    for name, (pipe, options) in models.items():
        numbers = {prompt: store.count(prompt, name) for prompt in prompts}
        wanted = [(prompt, numbers[prompt] + k) for prompt in prompts for k in range(config.images_per_prompt)]
        seeds = [seed_of(config.seed, prompt, number) for prompt, number in wanted]
        settings = {"num_inference_steps": config.num_inference_steps, "guidance_scale": config.guidance_scale, **options}
        images = draw(pipe, [prompt for prompt, _ in wanted], seeds, **settings, label=f"draw {name}")
        for i, prompt in enumerate(prompts):
            part = slice(i * config.images_per_prompt, (i + 1) * config.images_per_prompt)
            drawn += store.add_pictures(prompt, [encode_image(image) for image in images[part]], model=name, seeds=seeds[part])
    return drawn


def _opened(path: str, device: str) -> tuple[Any, dict[str, Any]]:
    """Return a pipeline, and further arguments of `draw`."""
    if not Run.is_in(path):
        return load_pipeline(path).to(device), {}
    run = Run.open(path, expects="image")
    if run.personal:
        raise ConfigError(f"{path}: a run of {run.method} draws for a user; expected one that draws to prompts alone")
    return load(path, device=device), drawn_as(run)


def _name(path: str) -> str:
    return Path(path).resolve().name if Path(path).is_dir() else path
