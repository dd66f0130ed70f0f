"""`diffalign quickstart`: the whole loop on the embedded models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from diffalign.cli.demo.options import QuickstartConfig, TextQuickstartConfig
from diffalign.cli.invocation import command_line
from diffalign.core.errors import ConfigError, check_name
from diffalign.core.keys import changed
from diffalign.methods import METHODS
from diffalign.rewards.base import record
from diffalign.rewards.names import check_taste_name

ABOUT = "the whole loop on the embedded model, with a report"
HELP = """examples:
  diffalign quickstart                              about five minutes on two cores, no GPU, no download
  diffalign quickstart --model assets/tiny-sd3      the same on a flow-matching transformer
  diffalign quickstart --text                       the loop for the language model that writes prompts
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CONFIG:
    """See the whole loop on a small embedded Stable Diffusion, or with --text on the language model that writes its prompts: it draws, a
    simulated voter chooses, the model learns, and a report compares. About five minutes on two cores, no GPU, no download."""

    text: bool = False
    """The loop for a language model that writes prompts, instead."""
    output_dir: str | None = None
    """Folder for pairs, weights and report; outputs/quickstart, with --text outputs/quickstart_text, if not given."""
    model: str | None = None
    """The embedded model: assets/tiny-sd (a UNet) if not given, or assets/tiny-sd3 (a flow-matching transformer); with --text
    assets/tiny-lm, a chat model that rewrites short prompts."""
    taste: str = "high"
    """What the simulated voter likes: high (near the top), centred, warm, large, bright_background, contrast or bright_shape."""
    temperature: float = 0.0
    """How often the voter errs (Bradley-Terry); 0 never. Not with --text."""
    method: str = "diffusion_dpo"
    """Preference method. Not with --text."""
    train_prompts: int | None = None
    """Prompts to make pairs for; 336, with --text 256, if not given."""
    images_per_prompt: int = 2
    """Pictures of each prompt; neighbours are voted on. Not with --text."""
    image_model: str = "assets/tiny-sd"
    """With --text: the image model that draws; it is not trained."""
    distance: str = "attributes"
    """With --text: distance of meaning between a short prompt and its rewrite: attributes (the share lost, by the embedded world's
    grammar), or the folder or hub id of a sentence encoder (one minus the cosine)."""
    alpha: float = 5.0
    """With --text: Sem-DPO's weight of a pair is exp(-alpha * distance of the preferred rewrite); 0 is plain DPO."""
    rewrites_per_prompt: int = 4
    """With --text: rewrites sampled for each prompt; best and worst make the pair."""
    min_gap: float = 0.1
    """With --text: least difference in taste, in [0, 1], of a pair that is trained on."""
    eval_prompts: int = 200
    """Prompts not trained on, to judge with."""
    beta: float | None = None
    """Beta of the objective; 500 for Diffusion-DPO, the method's own for others, 1 (it multiplies nats) with --text."""
    learning_rate: float | None = None
    """Learning rate; 1e-3, with --text 2e-4, if not given."""
    rank: int = 8
    """Rank of the LoRA adapter."""
    max_train_steps: int | None = None
    """Optimiser steps; 300, with --text 150 of each of two runs (with the weight of meaning and without), if not given."""
    train_batch_size: int = 32
    """Pairs a step."""
    num_inference_steps: int | None = None
    """Solver steps of every picture; 25, with --text 8, if not given."""
    guidance_scale: float = 4.0
    """Guidance of every picture."""
    seed: int = 0
    """Seed of prompts, pictures, votes and training."""


def run(config: CONFIG) -> int:
    """Run the loop and say where the report lies."""
    check_taste_name(config.taste)
    check_name("method", config.method, METHODS)
    return _texts(_options(config, TextQuickstartConfig)) if config.text else _images(_options(config, QuickstartConfig))


def _options(config: CONFIG, loop: type) -> dict[str, object]:
    """Return the flags that are set, for one of the loops. Raises ConfigError for a flag of the other one."""
    flags = {item.name for item in fields(loop)}
    options = {name: getattr(config, name) for name in changed(config) if name != "text"}
    for name in options:
        if name not in flags:
            raise ConfigError(f"`{name}` is a flag of `diffalign quickstart {'without' if config.text else 'with'} --text`")
    return options


def _images(options: dict) -> int:
    from diffalign.cli.demo.images import Quickstart

    report = Quickstart(QuickstartConfig(**options), command_line()).run()
    facts = json.loads(report.with_suffix(".json").read_text())
    print(_win_rate(facts))
    print(f"report: {report}")
    return 0


def _win_rate(facts: Mapping[str, Any]) -> str:
    """Return the win rate of the aligned model under the taste, and what was won, lost and tied."""
    low, high = facts["ci95"]
    spread = "no interval" if low is None else f"95 % interval {low:.3f} to {high:.3f}"
    rows = [one for one in facts["comparisons"] if (one["run"], one["scorer"]) == ("aligned", facts["taste"])]
    start = f"win rate {facts['win_rate']:.3f} ({spread}) on {facts['prompts_heldout']} prompts not trained on"
    return "\n  ".join([start, *map(record, rows)])


def _texts(options: dict) -> int:
    from diffalign.cli.demo.prompts import TextQuickstart

    report = TextQuickstart(TextQuickstartConfig(**options), command_line()).run()
    facts = json.loads(report.with_suffix(".json").read_text())
    print(_win_rate(facts))
    (low, high), (least, most) = facts["taste_gain_ci95"], facts["kept_over_plain_ci95"]
    print(f"taste of the pictures {facts['taste_base']:.3f} -> {facts['taste_aligned']:.3f} (gain {low:+.3f} to {high:+.3f}, 95 %)")
    print(
        f"meaning kept {facts['kept_base']:.3f} -> {facts['kept_aligned']:.3f}; without the weight of meaning {facts['kept_plain']:.3f} "
        f"(difference {least:+.3f} to {most:+.3f})"
    )
    print(f"report: {report}")
    return 0
