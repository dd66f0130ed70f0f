"""`diffalign votes draw`."""

from __future__ import annotations

import numpy as np

from diffalign.core.runs import Run
from diffalign.infer.options import DrawVotesConfig

CONFIG = DrawVotesConfig
ABOUT = "draw pictures for people to vote on"
HELP = """examples:
  diffalign votes draw --dataset_name votes.db --prompts prompts.txt --ahead 200
  diffalign votes draw --dataset_name votes.db --pretrained_model_name_or_path outputs/a outputs/b --images_per_prompt 1
  diffalign app --dataset_name votes.db --ahead 0            (then vote)
"""
EMBEDDED_PROMPTS = 400


def run(config: DrawVotesConfig) -> int:
    """Fill the store and say what it holds."""
    from diffalign.data.prompts import prompts_to_draw
    from diffalign.models.backbones.folders import check_folder, resolve

    for model in config.pretrained_model_name_or_path:
        if not Run.is_in(model):
            check_folder(resolve(model))
    prompts = prompts_to_draw(config.prompts) if config.prompts else _captions(config.seed)
    from diffalign.infer.draw_votes import draw_votes  # torch and diffusers take seconds to import

    drawn = draw_votes(config, prompts)
    print(f"{drawn} pictures drawn -> {config.dataset_name}")
    return 0


def _captions(seed: int) -> list[str]:
    """Return captions of the embedded world, which its small models draw."""
    from diffalign.data.world.captions import random_caption
    from diffalign.data.world.scenes import random_scene

    rng = np.random.default_rng(seed)
    return list(dict.fromkeys(random_caption(random_scene(rng), rng, without=("position", "background")) for _ in range(EMBEDDED_PROMPTS)))
